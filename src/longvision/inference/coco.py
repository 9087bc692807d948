"""Objects in COCO's format, for JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from longvision.types import Detections, Target


class CocoResults:
    """Objects of one image after the other; masks are held run-length encoded.

    Args:
        categories: the classes' names; label 0 becomes category 1.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self.categories = [{"id": number, "name": name} for number, name in enumerate(categories, 1)]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, size: tuple[int, int], found: Detections | Target) -> None:
        """An image of `size`, (height, width), and what was found in it, whatever the score."""
        height, width = size
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, "width": width, "height": height})
        for annotation in _annotations(found):
            numbers = {"id": len(self.annotations) + 1, "image_id": len(self.images)}
            self.annotations.append(numbers | annotation)

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Images, categories and annotations, each numbered from 1."""
        return {"images": self.images, "categories": self.categories, "annotations": self.annotations}


def _annotations(found: Detections | Target) -> Iterator[dict[str, Any]]:
    found = found.numpy()
    scores = None
    if isinstance(found, Detections):
        found = found.select(np.argsort(-found.scores, kind="stable"))
        scores = found.scores
    masks = None if found.masks is None else np.asarray(found.masks)
    shapes = None if masks is None else _encoded(masks)
    for i, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
        bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        annotation = {"category_id": int(found.labels[i]) + 1, "bbox": bbox, "iscrowd": 0}
        if scores is not None:
            annotation["score"] = round(float(scores[i]), 6)
        if shapes is None or masks is None:
            annotation["area"] = round((right - left) * (bottom - top), 3)
        else:
            annotation |= {"segmentation": shapes[i], "area": int(masks[i].sum())}
        yield annotation


def _encoded(masks_NHW: np.ndarray) -> list[dict[str, Any]]:
    """COCO's run lengths, as JSON holds them: the counts are text."""
    from faster_coco_eval.core import mask

    shapes = [mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)) for mask_HW in masks_NHW]
    return [{"size": list(map(int, shape["size"])), "counts": shape["counts"].decode()} for shape in shapes]
