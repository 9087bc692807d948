"""What every source of objects shares: records of annotated pictures, the targets made of them, faults in labels."""

import os
import pickle
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset

from longvision.data.faults import NAMED, is_too_many
from longvision.data.io.images import DAMAGE, read_image
from longvision.data.sources.folder import READERS
from longvision.types import Target

OVERHANG = 1.0  # pixels that a box may reach over its image's edge, where it is cut: labels are rounded
SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations of a picture lying on its side

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotated:
    """One picture's labels.

    Args:
        file: its path.
        number: its id in predictions and figures.
        height: pixels.
        width: pixels.
        boxes: x1, y1, x2, y2 in pixels, each inside the picture.
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


class Shelf(Sequence[Annotated]):
    """Records as bytes in one array: what worker processes read they need not copy, as they do Python's objects."""

    def __init__(self, records: Iterable[Annotated]) -> None:
        packed = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self.ends = np.cumsum([len(record) for record in packed], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]  # IndexError past the end, negative numbers from the end
        start = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[start : self.ends[index]].tobytes())


class PictureFiles(Dataset[tuple[Image.Image, Target]]):
    """Image files with their objects; read when they are asked for, in colour."""

    def __init__(self, records: Sequence[Annotated]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Image.Image, Target]:
        record = self.records[index]
        image = read_image(record.file)
        if image.size != (record.width, record.height):
            raise ValueError(
                f"{record.file} is {image.height}x{image.width}, its labels {record.height}x{record.width}"
            )
        return image, self.target(record)

    def target(self, record: Annotated) -> Target:
        return as_target(record.number, record.boxes, record.labels, record.crowd)

    def name(self, index: int) -> str:
        return os.path.basename(self.records[index].file)


def as_target(
    number: int, boxes: Any, labels: Any, crowd: Sequence[bool] | None = None, masks: Tensor | None = None
) -> Target:
    """N boxes x1, y1, x2, y2 in pixels and N class numbers -> what a set hands out; N may be 0.

    Args:
        number: the picture's id.
        boxes: (N, 4).
        labels: (N,).
        crowd: (N,); False when left out.
        masks: bool (N, H, W), where the source has any.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64)
    boxes_N4 = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    iscrowd_N = torch.as_tensor(crowd or [False] * len(labels), dtype=torch.bool)
    return Target(boxes_N4, labels, iscrowd_N, masks, image_id=number)


def listing(found: Sequence[str]) -> str:
    """The first ten."""
    return ", ".join(found[:NAMED]) + (", …" if len(found) > NAMED else "")


def refuse(found: Sequence[str], fault: str, do: str) -> None:
    """Raise for things found that cannot be right: how many, what is wrong, which, and what to do about it."""
    if found:
        raise ValueError(f"{len(found)} {fault} ({listing(found)}): {do}")


def without_area(found: Sequence[str], total: int, where: str) -> None:
    """Warn of boxes without area, which are left out: a slip of the hand. Raise for more than 1 %."""
    if not found:
        return
    fault = f"of the {total} boxes in {where} have no area"
    if is_too_many(len(found), total):
        refuse(found, fault, "correct or remove them, more than 1 % are no slip of the hand")
    warnings.warn(f"{len(found)} {fault} ({listing(found)}): they are left out", stacklevel=3)


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


def check_files(records: Iterable[Annotated], where: str) -> None:
    """Raise unless each picture is a file, an image, and of the size that `where` says. No pixel is decoded."""
    missing, broken, other = [], [], []
    for record, size in _sizes(records):
        name = os.path.basename(record.file)
        if size is None and not os.path.exists(record.file):
            missing.append(record.file)
        elif size is None:
            broken.append(record.file)
        elif size != (record.height, record.width):
            other.append(f"{name} is {size[0]}x{size[1]}, not {record.height}x{record.width}")
    refuse(missing, f"images that {where} lists do not exist", "add them, or give the folder that holds them")
    refuse(broken, f"files that {where} lists are not images", "replace them, or remove them from the list")
    refuse(other, f"images have another size than {where} says", "give the images that were labelled, unscaled")


def _sizes(records: Iterable[Annotated]) -> Iterator[tuple[Annotated, tuple[int, int] | None]]:
    records = list(records)
    with ThreadPoolExecutor(READERS) as readers:
        yield from zip(records, readers.map(upright_size, [record.file for record in records]), strict=True)


def upright_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width of a picture, turned as `read_image` turns it; None for what does not begin as an image."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) in SIDEWAYS else (height, width)
    except DAMAGE:
        return None


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:  # a damaged EXIF block turns nothing
        return 1
