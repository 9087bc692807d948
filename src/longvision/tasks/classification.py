"""Image classification: any timm model, cross-entropy, accuracy."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.metrics.classification import MacroAUROC, balanced_accuracy
from longvision.models.backbone import create_backbone
from longvision.tasks.config import ClassificationConfig
from longvision.tasks.task import Artifacts, Task
from longvision.types import DataInfo
from longvision.viz.charts import draw_confusion, draw_examples

EXAMPLES = 32  # images in predictions.png
MOST_AUROC = 1000  # classes: AUROC holds a probability of each for each image until the evaluation ends


class Classification(Task):
    """A classifier of images. Batches are images (B, C, H, W) and labels (B,), or soft targets (B, K)."""

    task_name = "classification"
    pipeline = "image-classification"
    metric_names: ClassVar = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        classes = len(info.classes)
        top: dict[str, Any] = {"accuracy": MulticlassAccuracy(classes, average="micro")}
        if classes > 5:
            top["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        if classes <= MOST_AUROC:
            top["auroc"] = MacroAUROC(classes)
        self.metric_names = _monitored_first(self.metric_names, config.monitor, classes)
        metrics = MetricCollection(top)
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        self.confusion = MulticlassConfusionMatrix(classes)
        self.confusion_KK: Tensor | None = None

    def create_model(self, args: dict[str, Any]) -> nn.Module:
        config, info = self.config, self.info
        return create_backbone(config.name, len(info.classes), info.channels, info.size, config.pretrained, args)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.model(x_BCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images_BCHW, target = batch
        logits_BK = self(images_BCHW)
        loss = plain = F.cross_entropy(logits_BK, target)
        if self.config.label_smoothing:
            loss = F.cross_entropy(logits_BK, target, label_smoothing=self.config.label_smoothing)
        self.log_loss("train", plain, len(images_BCHW))
        label_B = target if target.ndim == 1 else target.argmax(1)
        accuracy = (logits_BK.detach().argmax(1) == label_B).float().mean()
        self.log("train/accuracy", accuracy, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images_BCHW))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection) -> None:
        images_BCHW, label_B = batch
        if not len(images_BCHW):  # none of them could be read
            return
        logits_BK = self(images_BCHW)
        metrics.update(logits_BK, label_B)
        self.confusion.update(logits_BK, label_B)
        self.log_loss(split, F.cross_entropy(logits_BK, label_B), len(images_BCHW))
        self.log_dict(dict(metrics.items()), on_epoch=True, on_step=False, batch_size=len(images_BCHW))

    def on_validation_epoch_start(self) -> None:
        self.confusion.reset()

    def on_test_epoch_start(self) -> None:
        self.confusion.reset()

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, split: str) -> None:
        counts_KK = self.confusion.compute()  # on every device: it gathers
        self.confusion_KK = counts_KK.cpu()
        # the same on every device; else Lightning warns that it may not be
        self.log(f"{split}/balanced_accuracy", balanced_accuracy(counts_KK), sync_dist=True)

    def artifacts(self, data: Any, split: str, title: str) -> Artifacts:
        made: Artifacts = {"predictions.png": partial(self._draw_examples, data, split, title)}
        if self.confusion_KK is not None:
            counts_KK, classes = self.confusion_KK.numpy(), self.info.classes
            made["confusion.png"] = lambda path: draw_confusion(counts_KK, classes, path, title)
        return made

    @torch.inference_mode()
    def _draw_examples(self, data: Any, split: str, title: str, path: Path) -> None:
        """Images spread evenly over the split, each with its true class, the predicted one and its probability."""
        self.eval()
        examples = []
        for row in data.examples(split, EXAMPLES):
            try:
                image, tensor_CHW, label = data.sample(split, row)
            except (UnreadableImage, MissingFileError):  # named when it was read before
                continue
            probability, number = self(tensor_CHW[None].to(self.device)).float().softmax(1)[0].max(0)
            examples.append((image, self.info.classes[label], self.info.classes[int(number)], float(probability)))
        draw_examples(examples, path, f"{title}: some images and what the model says")


def _monitored_first(names: dict[str, str], monitor: str | None, classes: int) -> dict[str, str]:
    """Raises UserError for AUROC of more classes than it is measured of."""
    if monitor == "auroc" and classes > MOST_AUROC:
        raise UserError(
            f"--model.monitor auroc: it is not measured of {classes} classes, only up to {MOST_AUROC}: choose "
            "balanced_accuracy"
        )
    return {monitor: names[monitor], **names} if monitor else names
