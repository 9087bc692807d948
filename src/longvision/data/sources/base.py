"""What every set offers, wherever its images come from, and how a set without validation images gets some."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, Generic, TypeVar

import numpy as np

from longvision.data.io.deep import AnyImage
from longvision.data.io.headers import Header, read_header
from longvision.data.problems import TOLERATED, counted, listing
from longvision.data.serialized import SerializedList
from longvision.errors import UserError
from longvision.types import CocoIds, Colour, Split

Label = TypeVar("Label")


@dataclass(frozen=True)
class Listed:
    """What tells an image of a set from the others, and its label in words or in short.

    Args:
        name: its path from the set's folder; of images that have none, their content or number.
        label: its class, or what changes when its label does.
        file: where its bytes are, if they are in a file of their own.
        mark: of its content, see `mark_of`, if they are a part of a file.
    """

    name: str
    label: str
    file: str | None = None
    mark: str = ""


@dataclass(frozen=True)
class Trained:
    """What a model was trained on, for a source that is to be evaluated with it: this source's classes are these, in
    this order, whatever it has of them. It draws nothing and needs no training images; with a class that is not one of
    these it is refused.

    Args:
        classes: their names.
        has_masks: whether objects had masks.
        binary: whether masks had the values 0 and 255 for the two classes.
        multilabel: whether an image may have any number of classes.
    """

    classes: list[str]
    has_masks: bool = False
    binary: bool = False
    multilabel: bool = False


class ImageSet(Generic[Label]):
    """Images with their labels at the images' own size, read when they are asked for.

    Args:
        items: what is read, one an image; a list is kept serialized, as a million of them lie in every worker's memory.
        read: an item -> the image and its label; may raise UnreadableImage. Like the items, it goes to the workers.
        file: an item -> the path or the bytes of its image; None where images are made.
        window: an item -> the bytes as an open file, where they are a part of one.

    `left_out` says how many images of the split were found to be unreadable before and are none of these.
    """

    left_out = 0

    def __init__(
        self,
        items: Sequence[Any],
        read: Callable[[Any], tuple[AnyImage, Label]],
        file: Callable[[Any], str | bytes | None] | None = None,
        window: Callable[[Any], IO[bytes] | None] | None = None,
    ) -> None:
        self.items = SerializedList(items) if isinstance(items, list) else items
        self.read, self.file, self.window = read, file, window

    def file_of(self, index: int) -> str | bytes | None:
        """The path or the encoded bytes of an image; None for one that is made."""
        return None if self.file is None else self.file(self.items[index])

    def window_of(self, index: int) -> IO[bytes] | None:
        """The encoded bytes of an image, where they are a part of a file, as an open one. Raises UnreadableImage."""
        return None if self.window is None else self.window(self.items[index])

    def header_of(self, index: int) -> Header | None:
        """What an image's file says of itself, of which no more is read; None for one that is made, and for what does
        not begin as an image. Raises UnreadableImage."""
        if (window := self.window_of(index)) is not None:
            with window:
                return read_header(window)
        file = self.file_of(index)
        return None if file is None else read_header(file)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[AnyImage, Label]:
        return self.read(self.items[index])


class Source(Generic[Label]):
    """A place that holds up to three splits of one problem. A label is a class number, a class map (H, W) or a Target.

    A subclass lists its files when it is made, without torch, and raises UserError for what is wrong with them. It sets
    what stands here, and says what a split holds.
    """

    name: str  # of the set, for messages and titles
    classes: list[str]
    has_test: bool
    palette: list[Colour] | None = None  # of dense labels: a colour a class
    has_masks: bool = False  # of objects
    multilabel: bool = False  # whether an image may have any number of classes
    coco_ids: CocoIds | None = None  # of objects, for what prediction writes
    ids: Sequence[int | str] = ()  # of the classes, where labels call them otherwise than by name
    binary: bool = False  # whether masks were read as having two classes, 0 and 255, without being told so
    draws_validation: bool = False  # whether the validation images are a part of the training images
    tolerated: float = TOLERATED  # share of unreadable images
    most_objects: int = 0  # in a training image, once that split was checked

    @cached_property
    def notes(self) -> list[str]:
        """What the commands tell of the set, a line each: how it was read where it could be read otherwise, and what
        lies there and is not used. A source adds to it when it lists its files or opens a split."""
        return []

    @cached_property
    def splits(self) -> list[Split]:
        """That are there; of a source to evaluate, "train" are images that no split is said of, too."""
        return ["train", "val", "test"] if self.has_test else ["train", "val"]

    def split(self, split: Split) -> ImageSet[Label]:
        raise NotImplementedError

    def listed_images(self, split: Split) -> list[Listed]:
        """Every image of a split, in order, by which a run knows them later."""
        images = self.split(split)
        items = getattr(images, "items", range(len(images)))  # a set of somebody else's may have none
        return [self.identified(split, row, item) for row, item in enumerate(items)]

    def identified(self, split: Split, row: int, item: Any) -> Listed:
        """One of a set's items. Here: a file and a class number, or what has a place alone."""
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], int):
            return Listed(relative(item[0], self.name), self.classes[item[1]], item[0])
        return Listed(f"{split} {row}", "")

    def check(self, split: Split) -> None:
        """Raises UserError for labels that cannot be right. Here there is nothing to check."""


def unknown_classes(where: object, unknown: Iterable[str], classes: Sequence[str], remedy: str) -> UserError:
    """For what is to be evaluated with a model that does not know them."""
    names, known = listing(sorted(unknown)), listing(classes)
    return UserError(f"{where} has the classes {names}, which the model was not trained on ({known}): {remedy}")


def look_alike(names: Iterable[str], where: object) -> list[str]:
    """The line, or none, for class names that are the same but for capitals, blanks and wide letters."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    found = [" and ".join(map(repr, several)) for several in alike.values() if len(several) > 1]
    return [f"{where} has classes that differ by capitals or blanks alone ({listing(found)})"] if found else []


def without_images(classes: Sequence[str], labels: Iterable[int]) -> list[str]:
    """The line, or none, for classes that no training image has."""
    present = set(labels)
    missing = [name for number, name in enumerate(classes) if number not in present]
    return [f"no training image is of {counted(len(missing), 'class')}: {listing(missing)}"] if missing else []


def relative(file: str, folder: str) -> str:
    """With slashes, so that a set may be moved to another place or system."""
    return os.path.relpath(file, folder).replace(os.sep, "/")


def check_grey_or_colour(channels: int, name: str) -> None:
    """Of a set that is drawn, not read. Raises UserError for other channels than 1 and 3."""
    if channels not in (1, 3):
        raise UserError(f"data.channels {channels}: the images of {name} have 1 channel (grey) or 3 (colour)")


def hold_out(labels: np.ndarray, seed: int, every: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers (N,) -> the sorted rows that train and the sorted rows, one in `every`, that validate.

    Each class gives its share; one with two images or more always gives one and always keeps one.
    """
    count = np.bincount(labels)
    quota, rest = np.divmod(count, every)
    missing = round(len(labels) / every) - int(quota.sum())
    quota[np.argsort(-rest, kind="stable")[:missing]] += 1
    quota = np.minimum(np.maximum(quota, 1), np.maximum(count - 1, 0))
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    rows_of = np.split(np.argsort(labels, kind="stable"), np.cumsum(count)[:-1])
    for rows, share in zip(rows_of, quota):
        held[random.permutation(rows)[:share]] = True
    if not held.any():
        raise UserError("every class has a single image: add images, or a folder of validation images")
    return np.flatnonzero(~held), np.flatnonzero(held)
