"""Image classification by any timm model: one class an image, or any number of them."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MetricCollection

from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.metrics.mistakes import WorstMistakes, batches_of
from longvision.models.memory import create_finetuned
from longvision.tasks.config import ClassificationConfig
from longvision.tasks.label_kinds import MOST_AUROC, Answer, ManyLabels, OneLabel
from longvision.tasks.task import Artifacts, Task
from longvision.types import DataInfo, PackedImages
from longvision.viz import page
from longvision.viz.charts import draw_confusion, draw_examples

EXAMPLES = 32  # images in predictions.png
MISTAKES = 24  # images in report.html


class Classification(Task):
    """A classifier of images. Batches are images, (B, C, H, W) or packed, and the targets of its kind of labels: class
    numbers (B,) or soft targets (B, K), or of several labels an image 0 and 1, float (B, K)."""

    task_name = "classification"
    pipeline = "image-classification"
    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        classes = len(info.classes)
        self.kind: OneLabel | ManyLabels = ManyLabels() if info.multilabel else OneLabel()
        metrics = MetricCollection(self.kind.metrics(classes))  # type: ignore[arg-type]
        self.metric_names = _monitored_first(self.kind.metric_names, config.monitor, info)
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        self.counts = self.kind.counts(classes)
        self.counted: Tensor | None = None  # by class, in the last evaluation
        self.worst = WorstMistakes(MISTAKES)
        self.mistakes: list[int] = []  # of the last evaluation, the worst first
        self._batches: list[list[int]] = []  # the images of each batch that is evaluated

    def describe(self) -> dict[str, Any]:
        config = self.config
        found: dict[str, Any] = {"multilabel": True} if self.info.multilabel else {}
        if config.finetune in ("memory", "memory_mask"):
            found["head"] = {"finetune": config.finetune, "memory": config.memory}
        return found

    def create_model(self, args: dict[str, Any]) -> nn.Module:
        config, info = self.config, self.info
        shape = len(info.classes), info.channels, info.size
        return create_finetuned(config.name, *shape, config.pretrained, args, config.finetune, config.memory)

    def train(self, mode: bool = True) -> "Classification":
        """What is frozen drops nothing and counts no statistics."""
        super().train(mode)
        if self.config.finetune != "full":
            self.model.eval()
        return self

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, K)."""
        return self.model(x_BCHW)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images_BCHW, target = batch
        logits_BK = self(images_BCHW)
        loss = plain = self.kind.loss(logits_BK, target)
        if self.config.label_smoothing:
            loss = self.kind.loss(logits_BK, target, self.config.label_smoothing)
        self.log_loss("train", plain, len(images_BCHW))
        for name, value in self.kind.in_training(logits_BK.detach(), target).items():
            self.log(f"train/{name}", value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images_BCHW))
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
        images_BCHW, target = batch
        if not len(images_BCHW):  # none of them could be read
            return
        logits_BK = self(images_BCHW)
        metrics.update(logits_BK, target)
        self.kind.count(self.counts, logits_BK, target)
        loss_B = self.kind.loss(logits_BK, target, reduction="none")
        self._note_mistakes(split, index, loss_B, self.kind.wrong(logits_BK, target))
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
        self.counts.reset()
        self.worst.reset()
        self._batches = batches_of(self._loader(split))

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, split: str) -> None:
        counts = self.counts.compute()  # on every device: it gathers
        self.counted, self.mistakes = counts.cpu(), self.worst.compute()
        for name, value in self.kind.of_counts(counts).items():
            # the same on every device; else Lightning warns that it may not be
            self.log(f"{split}/{name}", value, sync_dist=True)

    def artifacts(self, data: Any, split: str, title: str) -> Artifacts:
        made: Artifacts = {"predictions.png": partial(self._draw_examples, data, split, title)}
        if self.counted is not None and not self.info.multilabel:
            counts_KK, classes = self.counted.numpy(), self.info.classes
            made["confusion.png"] = lambda path: draw_confusion(counts_KK, classes, path, title)
        return made

    def sections(self, data: Any, split: str) -> dict[str, str]:
        if self.counted is None:
            return {}
        counts, classes = self.counted.numpy(), self.info.classes
        return {
            "Confusion": "" if self.info.multilabel else page.confusion(counts, classes),
            "Worst mistakes": self._show_mistakes(data, split),
            "Classes": page.class_rates(classes, *self.kind.rates(counts)),
        }

    def _show_mistakes(self, data: Any, split: str) -> str:
        """The wrong answers with the highest loss: the surest mistakes."""
        answers = self._answers(data, split, self.mistakes)
        shown = [
            page.Shown(image, [answer.says, f"is {answer.truth}", data.name_of(split, row)])
            for row, image, answer in answers
        ]
        if not shown:
            return ""
        return page.paragraphs("with the highest loss: what the model says, and what it is") + page.images(shown)

    def _draw_examples(self, data: Any, split: str, title: str, path: Path) -> None:
        """Images spread evenly over the split, each with what the model says, and what it is where that is wrong."""
        answers = self._answers(data, split, data.examples(split, EXAMPLES))
        examples = [(image, answer.says, "" if answer.right else answer.truth) for _, image, answer in answers]
        draw_examples(examples, path, f"{title}: some images and what the model says")

    @torch.inference_mode()
    def _answers(self, data: Any, split: str, rows: Sequence[int]) -> list[tuple[int, Image.Image, Answer]]:
        """Of some images of a split, without those that cannot be read: these were named when they were read before."""
        self.eval()
        answers = []
        for row in rows:
            with suppress(UnreadableImage, MissingFileError):
                image, tensor_CHW, label = data.sample(split, row)
                logits_K = self(tensor_CHW[None].to(self.device))[0]
                answers.append((row, image, self.kind.answer(logits_K, label, self.info.classes)))
        return answers


def _monitored_first(names: dict[str, str], monitor: str | None, info: DataInfo) -> dict[str, str]:
    """Raises UserError for a metric that is not measured."""
    if monitor is not None and monitor not in names:
        labels = "any number of labels" if info.multilabel else "one label"
        raise UserError(f"--model.monitor {monitor}: with {labels} an image it is one of {', '.join(names)}")
    if monitor == "auroc" and len(info.classes) > MOST_AUROC:
        raise UserError(
            f"--model.monitor auroc: it is not measured of {len(info.classes)} classes, only up to {MOST_AUROC}: "
            f"choose {next(name for name in names if name != monitor)}"
        )
    return {monitor: names[monitor], **names} if monitor else names
