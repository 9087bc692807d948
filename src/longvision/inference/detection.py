"""Detectors: images to boxes, scores, classes and masks."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from longvision.inference.results import ObjectResult
from longvision.inference.task import Named, TaskPredictor


class DetectionPredictor(TaskPredictor):
    """Of a model with `detect(images, sizes)`: those of R-CNN's family and DETR."""

    def creator(self) -> Callable[..., nn.Module]:
        if self.description.task == "detr":
            from longvision.heads.detr import create_detr  # loads transformers

            return create_detr
        from longvision.heads.detection import create_detector

        return create_detector

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> list[ObjectResult]:
        found = model.detect(images, [(image.height, image.width) for _, image in inputs])
        return [
            ObjectResult(*named, self.classes, self.palette, detections.numpy(), self.description.coco_ids)
            for named, detections in zip(inputs, found, strict=True)
        ]
