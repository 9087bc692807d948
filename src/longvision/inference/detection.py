"""Detectors: images to boxes, scores, classes and masks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from longvision.errors import UserError
from longvision.heads.objects import ObjectModel
from longvision.inference.results import ObjectResult
from longvision.inference.task import Named, TaskPredictor


class DetectionPredictor(TaskPredictor):
    """Of a model with `detect(images, sizes)`: those of R-CNN's family and DETR."""

    def take_up_to(self, detections: int) -> None:
        about = self.description
        if about.task == "detr":
            raise UserError(
                f"--detections {detections}: {about.source} is a DETR, which finds as many objects as it has queries: "
                "train one with more --model.queries"
            )
        self.description = replace(about, head={**about.head, "detections": detections})

    def creator(self) -> Callable[..., nn.Module]:
        if self.description.task == "detr":
            from longvision.heads.detr import create_detr  # loads transformers

            return create_detr
        from longvision.heads.detection import create_detector

        return create_detector

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> list[ObjectResult]:
        limited = isinstance(model, ObjectModel)  # one that a caller gives may be another
        found = model.detect(images, [(image.height, image.width) for _, image in inputs])
        return [
            ObjectResult(
                *named,
                self.classes,
                self.palette,
                one.numpy(),
                self.description.coco_ids,
                model.most if limited and model.is_full(one) else 0,
                model.least_score if limited else 0.0,
            )
            for named, one in zip(inputs, found, strict=True)
        ]
