"""1,797 scanned digits of 8x8 pixels, inside scikit-learn: a real problem that needs no download."""

from functools import partial
from hashlib import blake2b

import numpy as np
from PIL import Image

from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, as_channels
from longvision.data.sources.base import ImageSet, Listed, Source, check_grey_or_colour, hold_out
from longvision.types import Split

CLASSES = [str(digit) for digit in range(10)]
TEST = 360  # the last scans, by writers that the first ones do not come from
INK = 16  # the darkest value of scikit-learn's scans


class DigitsSource(Source[int]):
    """The scans with their digits as class numbers."""

    name = "digits"
    classes = CLASSES
    has_test = True

    def __init__(self, channels: Channels = 1) -> None:
        check_grey_or_colour(channels, self.name)
        self.channels = channels

    def split(self, split: Split) -> ImageSet[int]:
        return ImageSet(list(zip(*load_digits_split(split), strict=True)), partial(_read, channels=self.channels))

    def identified(self, split: Split, row: int, item: tuple[np.ndarray, int]) -> Listed:
        return Listed(blake2b(item[0].tobytes(), digest_size=8).hexdigest(), self.classes[item[1]])


def load_digits_split(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Scans (N, 8, 8) of bytes, white on black, and the digit that each one shows (N,).

    The last 360 scans test; of the 1,437 before them, a fixed tenth of each class validates.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans_NHW, labels_N = (digits.images * (255 / INK)).round().astype(np.uint8), digits.target
    train, val = hold_out(labels_N[:-TEST], seed=0)
    rows = {"train": train, "val": val, "test": np.arange(len(labels_N))[-TEST:]}[split]
    return scans_NHW[rows], labels_N[rows]


def _read(scan: tuple[np.ndarray, int], channels: Channels) -> tuple[AnyImage, int]:
    return as_channels(Image.fromarray(scan[0]), channels), int(scan[1])
