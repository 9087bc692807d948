"""What every set offers, wherever its images come from, and how a set without validation images gets some."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from longvision.errors import UserError
from longvision.types import CocoIds, Colour, Split

Label = TypeVar("Label")


class ImageSet(Generic[Label]):
    """Images with their labels at the images' own size, read when they are asked for.

    Args:
        items: what is read, one an image: paths as text and numbers, as a million of them lie in every worker's memory.
        read: an item -> the image and its label; may raise UnreadableImage. Like the items, it goes to the workers.
    """

    def __init__(self, items: Sequence[Any], read: Callable[[Any], tuple[Image.Image, Label]]) -> None:
        self.items, self.read = items, read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, Label]:
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
    coco_ids: CocoIds | None = None  # of objects, for what prediction writes

    @cached_property
    def notes(self) -> list[str]:
        """What the commands tell of the set, a line each: how it was read where it could be read otherwise, and what
        lies there and is not used. A source adds to it when it lists its files or opens a split."""
        return []

    def split(self, split: Split) -> ImageSet[Label]:
        raise NotImplementedError

    def check(self, split: Split) -> None:
        """Raises UserError for labels that cannot be right. Here there is nothing to check."""


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
    for number, share in enumerate(quota):
        held[random.permutation(np.flatnonzero(labels == number))[:share]] = True
    if not held.any():
        raise UserError("every class has a single image: add images, or a folder of validation images")
    return np.flatnonzero(~held), np.flatnonzero(held)
