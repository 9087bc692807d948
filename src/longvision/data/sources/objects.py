"""What every source of objects shares: records of annotated images, the targets made of them, what labels must be."""

import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from longvision.data.io.images import read_image, upright_size
from longvision.data.io.threads import in_threads
from longvision.data.problems import refuse
from longvision.errors import UserError
from longvision.types import Target

OVERHANG = 1.0  # pixels that a box may reach over its image's edge, where it is cut: labels are rounded

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageRecord:
    """One image's labels.

    Args:
        file: its path.
        number: its id in predictions and metrics.
        height: pixels.
        width: pixels.
        boxes: x1, y1, x2, y2 in pixels, each inside the image.
        labels: class numbers from 0.
        crowd: True for what is neither trained on nor counted when it is missed.
        shapes: COCO segmentations, where the source has masks.
    """

    file: str
    number: int
    height: int
    width: int
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)


class SerializedList(Sequence[ImageRecord]):
    """Records as bytes in one array: what worker processes read they need not copy, as they do Python's objects."""

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        packed = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self.ends = np.cumsum([len(record) for record in packed], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]  # IndexError past the end, negative numbers from the end
        start = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[start : self.ends[index]].tobytes())


class ObjectImages:
    """Image files with their objects; read when they are asked for, in colour."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Image.Image, Target]:
        record = self.records[index]
        image = read_image(record.file)
        if image.size != (record.width, record.height):
            raise UserError(f"{record.file} is {image.height}x{image.width}, its labels {record.height}x{record.width}")
        return image, self.target(record)

    def target(self, record: ImageRecord) -> Target:
        return as_target(record.number, record.boxes, record.labels, record.crowd)


def as_target(
    number: int, boxes: Any, labels: Any, crowd: Sequence[bool] | None = None, masks_NHW: np.ndarray | None = None
) -> Target:
    """N boxes x1, y1, x2, y2 in pixels and N class numbers -> what a set hands out; N may be 0.

    Args:
        number: the image's id.
        boxes: (N, 4).
        labels: (N,).
        crowd: (N,); False when left out.
        masks_NHW: bool, where the source has any.
    """
    import torch

    labels = torch.as_tensor(labels, dtype=torch.int64)
    boxes_N4 = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    iscrowd_N = torch.as_tensor(crowd or [False] * len(labels), dtype=torch.bool)
    masks = None if masks_NHW is None else torch.from_numpy(masks_NHW)
    return Target(boxes_N4, labels, iscrowd_N, masks, image_id=number)


def overhang(box: Box, height: int, width: int) -> float:
    """How many pixels a box reaches over its image's edges; NaN where it has a coordinate that is not a number."""
    x1, y1, x2, y2 = box
    return float(np.max([-x1, -y1, x2 - width, y2 - height, 0.0]))


def is_outside(box: Box, height: int, width: int) -> bool:
    return not overhang(box, height, width) <= OVERHANG


def cut_to(box: Box, height: int, width: int) -> Box:
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def has_area(box: Box) -> bool:
    x1, y1, x2, y2 = box
    return x2 > x1 and y2 > y1


def check_files(records: Iterable[ImageRecord], where: str) -> None:
    """Raises UserError unless each file is an image of the size that `where` says. No pixel is decoded."""
    missing: list[str] = []
    broken: list[str] = []
    other: list[str] = []
    records = list(records)
    for record, size in zip(records, in_threads(upright_size, [record.file for record in records])):
        if size is None:
            (broken if os.path.exists(record.file) else missing).append(record.file)
        elif size != (record.height, record.width):
            name = os.path.basename(record.file)
            other.append(f"{name} is {size[0]}x{size[1]}, not {record.height}x{record.width}")
    refuse(missing, f"images that {where} lists do not exist", "add them, or give the folder that holds them")
    refuse(broken, f"files that {where} lists are not images", "replace them, or remove them from the list")
    refuse(other, f"images have another size than {where} says", "give the images that were labelled, unscaled")
