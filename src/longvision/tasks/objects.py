"""What tasks share that find objects: losses summed, COCO's average precision, images with boxes and masks."""

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from longvision.heads.extra import dense_library
from longvision.tasks.config import TaskConfig
from longvision.tasks.dense import DenseTask
from longvision.types import DataInfo, Detections, Size, Target
from longvision.viz.overlays import draw_objects

Batch = tuple[list[Tensor], list[Target]]


class ObjectTask(DenseTask):
    """A detector. Batches are lists of images (C, H, W) and of their targets.

    `self.model` returns named losses for images and targets, and has `detect(images, sizes)`. Losses are computed in
    training alone: there is no "val/loss".
    """

    pipeline = "object-detection"
    metric_names: ClassVar = {
        "box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"
    }  # fmt: skip
    class_metric_names: ClassVar = {"class_box_ap": "box AP", "class_mask_ap": "mask AP"}

    def __init__(self, config: TaskConfig, info: DataInfo, masks: bool) -> None:
        """With `masks`, masks are measured too. Raises UserError where COCO's metrics are not installed."""
        super().__init__(config, info)
        dense_library("faster_coco_eval")
        from longvision.metrics.average_precision import CocoAveragePrecision

        self.val_metrics, self.test_metrics = (CocoAveragePrecision(len(info.classes), masks) for _ in range(2))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images, targets = batch
        losses: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.check_finite(loss)
        self.log_loss("train", loss, len(images))
        parts = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(parts, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, index: int) -> None:
        self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: Batch, metrics: Any) -> None:
        images, targets = batch
        sizes = [target.size or (image.shape[1], image.shape[2]) for image, target in zip(*batch, strict=True)]
        metrics.update(self.detect(images, sizes), targets)

    def detect(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """Images as a model sees them, and the originals' sizes -> what is in them, in the originals' pixels."""
        return self.model.detect(images, sizes)  # type: ignore[operator]

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        image, image_CHW, truth = data.sample(split, row)
        (found,) = self.detect([image_CHW.to(self.device)], [truth.size])
        objects = {"prediction": found, "truth": truth}
        return draw_objects(image, objects, self.info.classes, self.info.palette or [])
