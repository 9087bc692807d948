"""What every source of objects shares: records of labelled images, the targets made of them, what labels must be."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from longvision.data.io.deep import AnyImage
from longvision.data.io.headers import read_header, turned_unseen_note, unturned_hint
from longvision.data.io.images import read_image, why_unreadable
from longvision.data.io.object_masks import ObjectMasks
from longvision.data.io.threads import in_threads
from longvision.data.problems import NAMED, is_too_many, refuse, skipped_note, too_many_unreadable
from longvision.data.serialized import SerializedList
from longvision.data.sources.base import ImageSet, Listed, Source, relative
from longvision.errors import UserError
from longvision.types import Split, Target

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
        shapes: COCO segmentations; None where the source has no masks.
    """

    file: str
    number: int
    height: int
    width: int
    boxes: list[Box] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    shapes: list[Any] | None = None

    def add(self, box: Box, label: int, crowd: bool, shape: Any = None) -> bool:
        """An object, its box cut to the image. One without an area is not added: False."""
        box = cut_to(box, self.height, self.width)
        if not has_area(box):
            return False
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(crowd)
        if self.shapes is not None:
            self.shapes.append(shape)
        return True


def refuse_shares(records: Iterable[ImageRecord], where: str) -> None:
    """Raises UserError for boxes or polygons that are shares of their images' sizes, as YOLO has them."""
    boxes = (value for record in records for box in record.boxes for value in box)
    polygons = (
        value
        for record in records
        for shape in record.shapes or ()
        if isinstance(shape, list)
        for polygon in shape
        for value in polygon
    )
    for what, values in (("boxes", boxes), ("polygons", polygons)):
        if _are_shares(values):
            raise UserError(
                f"the {what} in {where} do not reach beyond 1: they seem to be shares of the image's size, 0 to 1; "
                "write them in pixels"
            )


def _are_shares(values: Iterable[float]) -> bool:
    """Whether there are fractions, and nothing beyond 1."""
    fractions = False
    for value in values:
        if value > 1:
            return False
        fractions = fractions or value % 1 != 0
    return fractions


class ObjectSource(Source[Target]):
    """Files of labels beside files of images; a subclass sets what `Source` says, and reads a split's labels."""

    def __init__(self, path: str | Path, channels: int = 3) -> None:
        self.name, self.channels = str(path), channels
        self._records: dict[Split, SerializedList[ImageRecord]] = {}

    def split(self, split: Split) -> ImageSet[Target]:
        return ImageSet(self._read(split), partial(read_objects, channels=self.channels), attrgetter("file"))

    def identified(self, split: Split, row: int, item: ImageRecord) -> Listed:
        objects = repr((item.boxes, [self.classes[number] for number in item.labels], item.crowd))
        short = blake2b(objects.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        return Listed(relative(item.file, self.name), f"{len(item.labels)} objects {short}", item.file)

    def check(self, split: Split) -> None:
        """Raises UserError for labels that cannot be right, and for images that do not fit them. A few that cannot be
        read are told, and skipped later."""
        records = self._read(split)
        if split == "train":
            self.most_objects = max((len(one.crowd) - sum(one.crowd) for one in records), default=0)
        where = str(self.labels_of(split))
        refuse_shares(records, where)
        turned, broken = check_files(records, where)
        if turned:
            self.notes.append(turned_unseen_note(where, turned))
        if broken:
            where = f"{self.name} ({split})"
            reasons = [str(why_unreadable(file)) for file in broken[:NAMED]] + broken[NAMED:]
            if is_too_many(len(broken), len(records), self.tolerated):
                raise too_many_unreadable(reasons, len(broken), len(records), where, self.tolerated)
            self.notes.append(skipped_note(reasons, len(records), where))

    def records(self, split: Split) -> Iterable[ImageRecord]:
        """Every image, those without objects too. Raises UserError for labels that cannot be right."""
        raise NotImplementedError

    def labels_of(self, split: Split) -> Path:
        """The file or folder of a split's labels."""
        raise NotImplementedError

    def _read(self, split: Split) -> SerializedList[ImageRecord]:
        if split not in self._records:
            self._records[split] = SerializedList(self.records(split))
        return self._records[split]


def read_objects(record: ImageRecord, channels: int = 3) -> tuple[AnyImage, Target]:
    """An image with its objects."""
    image = read_image(record.file, channels)
    if image.size != (record.width, record.height):
        hint = unturned_hint(record.file, (record.height, record.width))
        raise UserError(
            f"{record.file} is {wide_and_high(image.height, image.width)}, its labels are of "
            f"{wide_and_high(record.height, record.width)}{hint}"
        )
    masks_NHW = None if record.shapes is None else ObjectMasks(record.shapes, (record.height, record.width))
    return image, as_target(record.number, record.boxes, record.labels, record.crowd, masks_NHW)


def as_target(
    number: int,
    boxes: Any,
    labels: Any,
    crowd: Sequence[bool] | None = None,
    masks_NHW: np.ndarray | ObjectMasks | None = None,
) -> Target:
    """An image's id, (N, 4) boxes x1, y1, x2, y2 in pixels, (N,) class numbers and whether each is a crowd (none, when
    left out), bool masks where the source has any -> what a set hands out; N may be 0."""
    import torch

    labels = torch.as_tensor(labels, dtype=torch.int64)
    boxes_N4 = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    iscrowd_N = torch.as_tensor(crowd or [False] * len(labels), dtype=torch.bool)
    masks = torch.from_numpy(masks_NHW) if isinstance(masks_NHW, np.ndarray) else masks_NHW
    return Target(boxes_N4, labels, iscrowd_N, masks, image_id=number)


def is_outside(box: Box, height: int, width: int) -> bool:
    """Also where a coordinate is not a number."""
    x1, y1, x2, y2 = box
    return not float(np.max([-x1, -y1, x2 - width, y2 - height])) <= OVERHANG


def overlap(one: Box, other: Box) -> float:
    """Intersection over union; of boxes that do not touch less than 0."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = one, other
    width, height = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
    if min(width, height) < 0:
        return min(width, height)
    both = width * height
    return both / max((x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - both, 1e-9)


def wide_and_high(height: int, width: int) -> str:
    return f"{width} wide and {height} high"


def cut_to(box: Box, height: int, width: int) -> Box:
    x1, y1, x2, y2 = box
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))


def has_area(box: Box) -> bool:
    x1, y1, x2, y2 = box
    return x2 > x1 and y2 > y1


def check_files(records: Iterable[ImageRecord], where: str) -> tuple[list[str], list[str]]:
    """Raises UserError unless each file that is an image has the size that `where` says. No pixel is decoded.

    -> names of images that are turned by their orientation tag without a change of size, and files that are no images.
    """
    records = list(records)
    missing: list[str] = []
    broken: list[str] = []
    other: list[str] = []
    turned: list[str] = []
    swapped = 0
    for record, header in zip(records, in_threads(read_header, [record.file for record in records])):
        name, size = os.path.basename(record.file), (record.height, record.width)
        if header is None:
            (broken if os.path.exists(record.file) else missing).append(record.file)
        elif header.size != size:
            turn = (
                f" (its size before its orientation tag {header.orientation} turns it)" if header.stored == size else ""
            )
            swapped += header.size == size[::-1] and not turn
            other.append(f"{name} is {wide_and_high(*header.size)}, not {wide_and_high(*size)}{turn}")
        elif header.turned_unseen:
            turned.append(name)
    refuse(missing, f"images that {where} lists do not exist", "add them, or give the folder that holds them")
    remedy = "give the images that were labelled, unscaled"
    if other and swapped == len(other):
        remedy = "width and height are exchanged: correct them in the labels"
    if any("orientation tag" in words for words in other):
        remedy += (
            "; where the tag turns them, turn their boxes too, or take the tag away if they are upright without it "
            "(exiftool -Orientation= FILE)"
        )
    refuse(other, f"images have another size than {where} says", remedy)
    return turned, broken
