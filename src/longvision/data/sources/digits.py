"""1,797 scanned digits of 8x8 pixels, inside scikit-learn: a real problem that needs no download."""

import numpy as np
from PIL import Image

from longvision.data.io.images import Channels, as_channels
from longvision.data.sources.base import Source, hold_out
from longvision.types import Split

CLASSES = [str(digit) for digit in range(10)]
TEST = 360  # the last scans, by writers that the first ones do not come from
INK = 16  # the darkest value of scikit-learn's scans


class Digits:
    """Scans (N, 8, 8) of bytes, white on black, with the digit each one shows."""

    def __init__(self, scans_NHW: np.ndarray, labels_N: np.ndarray, channels: Channels = 1) -> None:
        self.scans_NHW = scans_NHW
        self.labels_N = labels_N
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels_N)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        scan = Image.fromarray(self.scans_NHW[index])
        return as_channels(scan, self.channels), int(self.labels_N[index])


class DigitsSource(Source[int]):
    """The scans with their digits as class numbers."""

    name = "digits"
    classes = CLASSES
    has_test = True

    def __init__(self, channels: Channels = 1) -> None:
        self.channels = channels

    def split(self, split: Split) -> Digits:
        return load_digits_split(split, self.channels)


def load_digits_split(split: Split, channels: Channels = 1) -> Digits:
    """The last 360 scans test; of the 1,437 before them, a fixed tenth of each class validates."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans_NHW, labels_N = digits.images, digits.target
    scans_NHW = (scans_NHW * (255 / INK)).round().astype(np.uint8)
    rows = np.arange(len(labels_N))
    train, val = hold_out(labels_N[:-TEST], seed=0)
    rows = {"train": train, "val": val, "test": rows[-TEST:]}[split]
    return Digits(scans_NHW[rows], labels_N[rows], channels)
