"""What tasks share that find objects: losses summed, COCO's average precision, images with boxes and masks."""

import warnings
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import SumMetric

from longvision.heads.extra import dense_library
from longvision.tasks.config import TaskConfig
from longvision.tasks.dense import DenseTask
from longvision.tasks.task import trained_weight
from longvision.types import DataInfo, Detections, Size, Target
from longvision.viz.overlays import draw_objects

Batch = tuple[list[Tensor], list[Target]]
METRICS = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}


class ObjectTask(DenseTask):
    """A detector. Batches are lists of images (C, H, W) and of their targets.

    `self.model` returns named losses for images and targets, and has `detect(images, sizes)`. Losses are computed in
    training alone: there is no "val/loss".
    """

    pipeline = "object-detection"
    metric_names = METRICS
    limit: ClassVar[str]  # the option of the most objects in an image
    class_metric_names: ClassVar = {"class_box_ap": "box AP", "class_mask_ap": "mask AP"}

    def __init__(self, config: TaskConfig, info: DataInfo, masks: bool) -> None:
        """With `masks`, masks are measured too. Raises UserError where COCO's metrics are not installed."""
        super().__init__(config, info)
        dense_library("faster_coco_eval")
        from longvision.metrics.average_precision import CocoAveragePrecision

        self.most = getattr(config, self.limit)
        self.val_metrics, self.test_metrics = (
            CocoAveragePrecision(len(info.classes), masks, self.most) for _ in range(2)
        )
        self._full = SumMetric()
        self.full = 0  # images of the last evaluation in which as many objects were found as can be

    def on_fit_start(self) -> None:
        """Warns where there are images with more objects than can be found."""
        super().on_fit_start()
        source = getattr(getattr(self.trainer, "datamodule", None), "source", None)
        most = getattr(source, "most_objects", 0)
        if most > self.most and self.trainer.is_global_zero:
            warnings.warn(
                f"{self.info.name} has up to {most} objects in an image, of which at most {self.most} can be found: "
                f"raise --model.{self.limit}",
                stacklevel=2,
            )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log_loss("train", loss, len(images))
        parts = {f"train/{name}": value.detach().nan_to_num(0, 0, 0) for name, value in losses.items()}
        weight: Any = trained_weight(loss.detach(), len(images))
        self.log_dict(parts, on_step=False, on_epoch=True, sync_dist=True, batch_size=weight)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: Batch, metrics: Any) -> None:
        images, targets = batch
        if not images:  # none of them could be read
            return
        sizes = [target.size or (image.shape[1], image.shape[2]) for image, target in zip(*batch, strict=True)]
        found = self.detect(images, sizes)
        metrics.update(found, targets)
        self._full.update(sum(map(self.model.is_full, found)))  # type: ignore[arg-type]

    def _finish(self, split: str, metrics: Any) -> None:
        super()._finish(split, metrics)
        self.full = int(self._full.compute())  # on every device: it gathers
        self._full.reset()

    def remarks(self) -> list[str]:
        if not self.full:
            return []
        return [
            f"in {self.full} of {self.evaluated} images {self.most} of {self.most} objects were found, the most that "
            f"can be, unsure ones counted: raise --model.{self.limit} where there may be more"
        ]

    def detect(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """Images as a model sees them, and the originals' sizes -> what is in them, in the originals' pixels."""
        return self.model.detect(images, sizes)  # type: ignore[operator]

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        image, image_CHW, truth = data.sample(split, row)
        (found,) = self.detect([image_CHW.to(self.device)], [truth.size])
        objects = {"prediction": found, "truth": truth}
        return draw_objects(image, objects, self.info.classes, self.info.palette or [])
