"""What a detection is measured by: COCO's average precision."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from longvision.types import Detections, Target

BY_COCO = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}


class CocoAveragePrecision(MeanAveragePrecision):
    """COCO's AP of boxes, and of masks where there are any, over all images of a split, gathered over devices.

    As in COCOeval, of each image and class at most 100 detections count, or `most` where that is more, and what lies in
    a crowd neither helps nor harms. Masks are held run-length encoded.

    Args:
        classes: how many, K.
        masks: whether targets and detections have masks.
        most: the most detections that an image may have.

    Raises:
        ModuleNotFoundError: faster-coco-eval is not installed.
    """

    def __init__(self, classes: int, masks: bool = False, most: int = 100) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if masks else "bbox",
            # The defaults went through float32: a recall of exactly 0.1 would miss the threshold 0.1.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            max_detection_thresholds=[1, 10, max(100, most)],
            class_metrics=True,
            backend="faster_coco_eval",
        )
        self.number, self.kinds = classes, {"box": "bbox_", "mask": "segm_"} if masks else {"box": ""}

    def update(self, detections: list[Detections], targets: list[Target]) -> None:  # type: ignore[override]
        """Of the same images, in the same pixels. Targets' masks that are not drawn yet never are: of 150 on 12
        megapixels that would take 1.8 GB."""
        super().update(
            [_torchmetrics(one) | {"scores": one.scores} for one in detections],
            [_torchmetrics(one) | {"iscrowd": one.iscrowd.long()} for one in targets],  # gloo gathers no booleans
        )
        if "segm_" in self.kinds.values():
            for place, one in enumerate(targets, len(self.groundtruth_mask) - len(targets)):
                if not isinstance(one.masks, Tensor):
                    self.groundtruth_mask[place] = tuple(one.masks.run_lengths())  # type: ignore[union-attr,call-overload]

    def compute(self) -> dict[str, Any]:
        """AP from 0 to 1: "box_ap", "box_ap50", "box_ap75", "class_box_ap" (K,), and with masks "mask_ap" and so on.

        A class of which no image has an object has no AP: it is NaN in "class_box_ap" and left out of the means,
        which are NaN if that goes for every class. A class that is there but never found has an AP of 0. Of a single
        class, torchmetrics makes a scalar of "class_box_ap".
        """
        measured, metrics = super().compute(), {}
        for kind, prefix in self.kinds.items():
            for ours, coco in BY_COCO.items():
                metrics[f"{kind}_{ours}"] = _or_nan(measured[prefix + coco])
            by_class = torch.full((self.number,), torch.nan)
            if measured["classes"].numel():  # else there is no entry
                by_class[measured["classes"].reshape(-1).long()] = measured[f"{prefix}map_per_class"].reshape(-1)
            metrics[f"class_{kind}_ap"] = _or_nan(by_class)
        return metrics


def _torchmetrics(objects: Detections | Target) -> dict[str, Tensor]:
    """Of masks that are not drawn, a pixel each, in whose place their run lengths come."""
    masks = {}
    if objects.masks is not None:
        is_drawn = isinstance(objects.masks, Tensor)
        masks["masks"] = objects.masks if is_drawn else torch.zeros(len(objects), 1, 1, dtype=torch.bool)
    return {"boxes": objects.boxes, "labels": objects.labels} | masks


def _or_nan(metrics: Tensor) -> Tensor:
    """COCOeval says -1 where there is nothing to measure."""
    return metrics.where(metrics >= 0, torch.nan)
