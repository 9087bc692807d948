"""Image classification: any timm model, cross-entropy, accuracy."""

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from longvision.engine.run import Run
from longvision.errors import UnreadableImage
from longvision.models.backbone import create_backbone
from longvision.tasks.task import Task, check_range
from longvision.viz.charts import draw_confusion, draw_examples

EXAMPLES = 32  # images in predictions.png


class Classification(Task):
    """A classifier of images. Batches are images (B, C, H, W) and labels (B,), or soft targets (B, K).

    Args:
        name: any timm model, ours included.
        args: further arguments of that model, such as depth or direction.
        pretrained: weights to start from: a file's path, or true for those that timm knows.
        lr: learning rate at the end of the warm-up.
        weight_decay: AdamW's, for all but norms, biases, positions and decay rates.
        layer_decay: factor on the learning rate from each block to the one before it; null for none.
        warmup_epochs: over which the learning rate rises.
        final_lr: at the end of the cosine, as a fraction of lr.
        drop_path: stochastic depth at the last block.
        label_smoothing: share of the target that is spread over all classes.
        checkpoint: keep only each block's input for the backward pass: less memory, a third more time.
        classes: their names; from the data.
        size: of the images, (height, width); from the data.
        channels: of the images; from the data.
    """

    kind = "classification"
    pipeline = "image-classification"
    figures: ClassVar = {"accuracy": "accuracy"}
    leaves = "curves.png, confusion.png, predictions.png"

    def __init__(
        self,
        name: str = "vim_tiny_patch16_224",
        args: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float | None = None,
        warmup_epochs: float = 5,
        final_lr: float = 0.01,
        drop_path: float = 0.0,
        label_smoothing: float = 0.0,
        checkpoint: bool = False,
        *,
        classes: list[str],
        size: tuple[int, int],
        channels: int = 3,
    ) -> None:
        super().__init__(name, args, classes, pretrained)
        self.set_optimiser(lr, weight_decay=weight_decay, layer_decay=layer_decay, final_lr=final_lr)
        check_range(drop_path=(drop_path, 0, 0.99), label_smoothing=(label_smoothing, 0, 0.99))
        check_range(warmup_epochs=(warmup_epochs, 0, 1e6))
        options = {**self.args, "drop_path_rate": drop_path} if drop_path else self.args
        self.model = create_backbone(name, len(classes), channels, size, pretrained, options)
        if checkpoint:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.label_smoothing = label_smoothing
        self.warmup_epochs = warmup_epochs

        top: dict[str, Any] = {"accuracy": MulticlassAccuracy(len(classes), average="micro")}
        if len(classes) > 5:
            top["top5"] = MulticlassAccuracy(len(classes), top_k=5, average="micro")
        metrics = MetricCollection(top)
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        self.confusion = MulticlassConfusionMatrix(len(classes))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.model(x_BCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, target = batch
        logits = self(images)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        self.check_finite(loss)
        label = target if target.ndim == 1 else target.argmax(1)
        accuracy = (logits.detach().argmax(1) == label).float().mean()
        self.log_dict(
            {"train/loss": loss, "train/accuracy": accuracy}, on_step=True, on_epoch=True, batch_size=len(images)
        )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection) -> None:
        images, label = batch
        logits = self(images)
        metrics.update(logits, label)
        self.confusion.update(logits, label)
        self.log(f"{split}/loss", F.cross_entropy(logits, label), batch_size=len(images))
        self.log_dict(dict(metrics.items()), on_epoch=True, on_step=False, batch_size=len(images))

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        self.confusion_KK = self.confusion.compute().cpu()  # on every device: it gathers

    def on_test_epoch_end(self) -> None:
        self.confusion_KK = self.confusion.compute().cpu()

    def evaluated(self, data: Any, split: str) -> int:
        return int(self.confusion_KK.sum())  # files that are no images were left out

    def draw(self, data: Any, split: str, folder: Path, title: str) -> None:
        draw_confusion(self.confusion_KK.numpy(), self.classes, folder / "confusion.png", title)
        examples = self._examples(data, split)
        draw_examples(examples, folder / "predictions.png", f"{title}: some images and what the model says")

    @torch.inference_mode()
    def _examples(self, data: Any, split: str) -> list[tuple[Any, str, str, float]]:
        """Images spread evenly over the split: (image, true class, predicted class, probability)."""
        self.eval()
        examples = []
        for row in data.examples(split, EXAMPLES):
            try:
                image, tensor_CHW, label = data.sample(split, row)
            except UnreadableImage:  # a broken file, named when it was read before
                continue
            share, number = self(tensor_CHW[None].to(self.device)).float().softmax(1)[0].max(0)
            examples.append((image, self.classes[label], self.classes[int(number)], float(share)))
        return examples

    def usage(self, data: Any, run: Run) -> str:
        height, width = data.size
        arguments = json.dumps({"num_classes": len(data.classes), "in_chans": data.channels, **self.args})
        source = f"num_classes={len(data.classes)}, input_size={(data.channels, height, width)}"
        return f"""
```python
import longvision, timm

model = timm.create_model(
    "{self.name}", img_size=({height}, {width}), pretrained=True,
    pretrained_cfg_overlay=dict(file="{run.weights.name}", {source}), **{arguments},
).eval()
```

Images are normalised with mean {tuple(round(v, 4) for v in data.input.mean)} and standard deviation \
{tuple(round(v, 4) for v in data.input.std)}, after a centre crop of {data.input.crop}.
"""
