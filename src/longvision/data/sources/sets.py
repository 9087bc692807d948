"""What every image set offers, wherever its images come from, and how a set without validation gets one."""

from typing import Literal, Protocol

import numpy as np
from PIL import Image

Split = Literal["train", "val", "test"]


class ImageSet(Protocol):
    """Images with their class numbers; reading one may raise `UnreadableImage`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...


class Source(Protocol):
    """A place that holds up to three splits of one classification problem."""

    classes: list[str]
    has_test: bool

    def split(self, split: Split) -> ImageSet: ...


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
        raise ValueError("every class has a single image: add images, or a folder of validation images")
    return np.flatnonzero(~held), np.flatnonzero(held)
