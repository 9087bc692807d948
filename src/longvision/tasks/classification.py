"""Image classification: any timm model, cross-entropy, accuracy."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.metrics.classification import MacroAUROC, balanced_accuracy
from longvision.metrics.mistakes import WorstMistakes, batches_of
from longvision.models.backbone import create_backbone
from longvision.tasks.config import ClassificationConfig
from longvision.tasks.task import Artifacts, Task
from longvision.types import DataInfo, PackedImages
from longvision.viz import page
from longvision.viz.charts import draw_confusion, draw_examples

EXAMPLES = 32  # images in predictions.png
MISTAKES = 24  # images in report.html
METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
MOST_AUROC = 1000  # classes: AUROC holds a probability of each for each image until the evaluation ends


class Classification(Task):
    """A classifier of images. Batches are images, (B, C, H, W) or packed, and labels (B,), or soft targets (B, K)."""

    task_name = "classification"
    pipeline = "image-classification"
    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        classes = len(info.classes)
        top: dict[str, Any] = {"accuracy": MulticlassAccuracy(classes, average="micro")}
        if classes > 5:
            top["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        if classes <= MOST_AUROC:
            top["auroc"] = MacroAUROC(classes)
        self.metric_names = _monitored_first(METRICS, config.monitor, classes)
        metrics = MetricCollection(top)
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        self.confusion = MulticlassConfusionMatrix(classes)
        self.confusion_KK: Tensor | None = None
        self.worst = WorstMistakes(MISTAKES)
        self.mistakes: list[int] = []  # of the last evaluation, the worst first
        self._batches: list[list[int]] = []  # the images of each batch that is evaluated

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
        return loss * self._weight(len(images_BCHW)) if isinstance(images_BCHW, PackedImages) else loss

    def _weight(self, images: int) -> Tensor | float:
        """Of a device's pack, by how many images are in it: as if all devices' images were in one batch."""
        if self.trainer.world_size == 1:
            return 1.0
        count = torch.tensor(float(images), device=self.device)
        return count / self.trainer.strategy.reduce(count.clone(), reduce_op="mean")

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "val", self.val_metrics, index)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self._evaluate(batch, "test", self.test_metrics, index)

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection, index: int) -> None:
        images_BCHW, label_B = batch
        if not len(images_BCHW):  # none of them could be read
            return
        logits_BK = self(images_BCHW)
        metrics.update(logits_BK, label_B)
        self.confusion.update(logits_BK, label_B)
        loss_B = F.cross_entropy(logits_BK, label_B, reduction="none")
        self._note_mistakes(split, index, loss_B, logits_BK.argmax(1) != label_B)
        self.log_loss(split, loss_B.mean(), len(images_BCHW))
        self.log_dict(dict(metrics.items()), on_epoch=True, on_step=False, batch_size=len(images_BCHW))

    def _note_mistakes(self, split: str, index: int, loss_B: Tensor, wrong_B: Tensor) -> None:
        """Where the rows of a batch are known: its images are those of the loader's that could be read."""
        row_B = torch.tensor(self._batches[index] if index < len(self._batches) else [], dtype=torch.long)
        if len(row_B):
            row_B = row_B[~self._loader(split).dataset.unreadable_N[row_B]]
        known = len(loss_B) if len(row_B) == len(loss_B) else 0
        self.worst.update(loss_B[:known], wrong_B[:known], row_B[:known])

    def _loader(self, split: str) -> Any:
        return getattr(self.trainer, f"{split}_dataloaders", None)

    def on_validation_epoch_start(self) -> None:
        self._begin("val")

    def on_test_epoch_start(self) -> None:
        self._begin("test")

    def _begin(self, split: str) -> None:
        self.confusion.reset()
        self.worst.reset()
        self._batches = batches_of(self._loader(split))

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, split: str) -> None:
        counts_KK = self.confusion.compute()  # on every device: it gathers
        self.confusion_KK, self.mistakes = counts_KK.cpu(), self.worst.compute()
        # the same on every device; else Lightning warns that it may not be
        self.log(f"{split}/balanced_accuracy", balanced_accuracy(counts_KK), sync_dist=True)

    def artifacts(self, data: Any, split: str, title: str) -> Artifacts:
        made: Artifacts = {"predictions.png": partial(self._draw_examples, data, split, title)}
        if self.confusion_KK is not None:
            counts_KK, classes = self.confusion_KK.numpy(), self.info.classes
            made["confusion.png"] = lambda path: draw_confusion(counts_KK, classes, path, title)
        return made

    def sections(self, data: Any, split: str) -> dict[str, str]:
        if self.confusion_KK is None:
            return {}
        counts_KK, classes = self.confusion_KK.numpy(), self.info.classes
        return {
            "Confusion": page.confusion(counts_KK, classes),
            "Worst mistakes": self._show_mistakes(data, split),
            "Classes": page.recalls(counts_KK, classes),
        }

    @torch.inference_mode()
    def _show_mistakes(self, data: Any, split: str) -> str:
        """The images that are taken for another class with the highest loss: the surest mistakes."""
        self.eval()
        shown, classes = [], self.info.classes
        for row in self.mistakes:
            try:
                image, tensor_CHW, label = data.sample(split, row)
            except (UnreadableImage, MissingFileError):
                continue
            share_K = self(tensor_CHW[None].to(self.device)).float().softmax(1)[0]
            share, number = share_K.max(0)
            says = f"{classes[int(number)]} ({page.percent(float(share))})"
            is_ = f"is {classes[label]} ({page.percent(float(share_K[label]))})"
            shown.append(page.Shown(image, [says, is_, data.name_of(split, row)]))
        if not shown:
            return ""
        return page.paragraphs("with the highest loss: what the model says, and what it is") + page.images(shown)

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
