"""Detection and instance segmentation: Cascade or Mask R-CNN on any timm backbone, COCO's average precision."""

from typing import Any

from longvision.heads.detection import create_detector
from longvision.tasks.config import DetectionConfig
from longvision.tasks.objects import ObjectTask
from longvision.types import DataInfo


class Detection(ObjectTask):
    """A detector in two steps: regions, then what is in each; with masks where the data has them."""

    task_name = "detection"
    config: DetectionConfig
    create = staticmethod(create_detector)
    limit = "detections"

    def __init__(self, config: DetectionConfig, info: DataInfo) -> None:
        super().__init__(config, info, info.has_masks)

    @property
    def head(self) -> dict[str, Any]:
        config = self.config
        return {
            "head": config.head, "width": config.width, "masks": self.info.has_masks, "detections": config.detections,
        }  # fmt: skip
