"""Scanned digits scattered over textured canvases of any size: segmentation, detection and counting without a download.

An image is a function of its seed, split, number and size alone, to the byte and on every machine: all arithmetic is
on integers or, value by value, on float64, and no draw goes through a logarithm or a sine.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from longvision.data.sources.digits import load_digits_split
from longvision.data.sources.scattered_canvas import (
    add_noise,
    enlarged,
    paint,
    sharpened,
    strew_clutter,
    texture,
    usual_digits,
)
from longvision.errors import UserError
from longvision.types import Size, Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
COUNTS: dict[Split, int] = {"train": 2000, "val": 200, "test": 400}
SIDES = (32, 64)  # pixels of the smallest and the largest scan with its margin; at most 7/16 of the canvas
LEAST_CANVAS, MOST_CANVAS = 32, 16384
GAP = 2  # pixels at least between the masks of two digits; the soft edges of their strokes reach further
TRIES = 12  # places tried for a digit before it is left out
SHARE = (0.25, 0.45)  # of the digits in an image that show the one that occurs most


@dataclass(frozen=True)
class Scene:
    """One image and what is in it: N digits, of which no two masks touch.

    Args:
        image: the image, mode "L".
        instance_HW: int16, 0 for background, the digit's place in the other arrays plus 1 elsewhere.
        boxes_N4: float32 x1, y1, x2, y2 in pixels, tight around the strokes; x2 and y2 are exclusive.
        labels_N: int64, the digit that each instance shows.
        most: the digit that occurs most; no other occurs as often.
    """

    image: Image.Image
    instance_HW: np.ndarray
    boxes_N4: np.ndarray
    labels_N: np.ndarray
    most: int

    @cached_property
    def class_map_HW(self) -> np.ndarray:
        """uint8: 0 for background, d + 1 for digit d."""
        return np.append(0, self.labels_N + 1).astype(np.uint8)[self.instance_HW]

    @cached_property
    def masks_NHW(self) -> np.ndarray:
        """bool: the pixels of each digit."""
        numbers = np.arange(1, len(self.labels_N) + 1, dtype=np.int16)
        return self.instance_HW == numbers[:, None, None]


@dataclass
class Placed:
    """A digit enlarged to (h, w) at row `top`, column `left`."""

    label: int
    top: int
    left: int
    ink_hw: np.ndarray  # float64 0..1

    @cached_property
    def solid_hw(self) -> np.ndarray:
        return self.ink_hw >= 0.5

    @property
    def where(self) -> tuple[slice, slice]:
        height, width = self.ink_hw.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Around the solid pixels, which no other digit covers."""
        rows, columns = (np.flatnonzero(self.solid_hw.any(axis)) for axis in (1, 0))
        return self.left + columns[0], self.top + rows[0], self.left + columns[-1] + 1, self.top + rows[-1] + 1


class ScatteredDigits:
    """`count` scenes of scikit-learn's digits, each split with scans (and, in test, writers) of its own.

    Args:
        split: "train", "val" or "test".
        count: images.
        size: height and width, pixels.
        digits: least and most digits tried; by the image's area when left out. There are fewer where no place is
            found for one, or where two digits would occur equally often: one alone on 32x32 pixels.
        seed: another one is another set.
    """

    def __init__(
        self,
        split: Split,
        count: int,
        size: tuple[int, int] = (256, 256),
        digits: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        check_scenes(count, size, seed)
        height, width = size
        least, most = digits or usual_digits(height, width)
        if not 1 <= least <= most <= 10000:
            raise UserError(f"digits {least} to {most} an image: expected 1 <= least <= most <= 10000")
        self.split, self.count, self.size, self.digits, self.seed = split, count, (height, width), (least, most), seed
        scans_DHW, labels_D = load_digits_split(split)
        self.ink_DHW = np.pad(scans_DHW / 255, ((0, 0), (1, 1), (1, 1)))  # with a margin so that strokes end inside
        self.rows = [np.flatnonzero(labels_D == digit) for digit in range(10)]

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"image {index} of {self.count}")
        key = [self.seed, SPLITS.index(self.split), index, *self.size]
        random = np.random.Generator(np.random.PCG64(key))
        placed = unique_most(self._place(random))
        canvas_HW = texture(random, *self.size)
        strew_clutter(random, canvas_HW)
        for digit in placed:
            paint(random, canvas_HW, digit.where, digit.ink_hw)
        add_noise(random, canvas_HW)
        instance_HW = np.zeros(self.size, np.int16)
        for number, digit in enumerate(placed, start=1):
            instance_HW[digit.where][digit.solid_hw] = number
        boxes_N4 = np.array([digit.box for digit in placed], np.float32).reshape(-1, 4)
        labels_N = np.array([digit.label for digit in placed], np.int64)
        most = int(np.bincount(labels_N).argmax())
        return Scene(Image.fromarray(canvas_HW), instance_HW, boxes_N4, labels_N, most)

    def _place(self, random: np.random.Generator) -> list[Placed]:
        """Digits whose masks stay apart; their boxes may overlap."""
        labels = draw_labels(random, int(random.integers(*self.digits, endpoint=True)))
        height, width = self.size
        largest = max(SIDES[0], min(SIDES[1], 7 * min(self.size) // 16))
        taken_HW = np.zeros((height + 2 * GAP, width + 2 * GAP), bool)  # with a border, so that gaps need no care there
        placed: list[Placed] = []
        for label in labels:
            scan = self.ink_DHW[random.choice(self.rows[label])]
            tall, wide = (int(side) for side in random.integers(SIDES[0], largest, 2, endpoint=True))
            wide = min(max(wide, 3 * tall // 4), max(SIDES[0], 5 * tall // 4))  # a digit keeps about its proportions
            digit = Placed(int(label), 0, 0, sharpened(enlarged(scan, tall, wide)))
            tops = random.integers(0, height - tall, TRIES, endpoint=True)
            lefts = random.integers(0, width - wide, TRIES, endpoint=True)
            for digit.top, digit.left in zip(tops.tolist(), lefts.tolist(), strict=True):
                around_hw = taken_HW[digit.top : digit.top + tall + 2 * GAP, digit.left : digit.left + wide + 2 * GAP]
                if not around_hw[GAP:-GAP, GAP:-GAP][digit.solid_hw].any():
                    around_hw |= grown(digit.solid_hw)
                    placed.append(digit)
                    break
        return placed


def check_scenes(count: int, size: Size, seed: int) -> None:
    """Raises UserError for scenes that cannot be made."""
    if not LEAST_CANVAS <= min(size) <= max(size) <= MOST_CANVAS:
        raise UserError(f"size {size[0]}x{size[1]}: expected sides from {LEAST_CANVAS} to {MOST_CANVAS} pixels")
    if count < 1:
        raise UserError(f"{count} images: expected at least 1")
    if seed < 0:
        raise UserError(f"seed {seed}: expected 0 or more")


def draw_labels(random: np.random.Generator, count: int) -> np.ndarray:
    """Digits (count,) in any order, of which one occurs more often than each other."""
    most = random.integers(10)
    low, high = SHARE
    often = min(count, max(2, round(count * (low + (high - low) * random.random()))))
    others = np.repeat(np.delete(np.arange(10), most), often - 1)
    return random.permutation(np.append(np.full(often, most), random.permutation(others)[: count - often]))


def unique_most(placed: list[Placed]) -> list[Placed]:
    """The digits without the last ones that occur as often as the one that occurs most."""
    counts = np.bincount([digit.label for digit in placed], minlength=10)
    most = counts.argmax()
    surplus = counts - (counts[most] - 1)
    surplus[most] = 0
    kept: list[Placed] = []
    for digit in reversed(placed):
        if surplus[digit.label] > 0:
            surplus[digit.label] -= 1
        else:
            kept.append(digit)
    return kept[::-1]


def grown(solid_hw: np.ndarray) -> np.ndarray:
    """bool (h + 2 GAP, w + 2 GAP): the pixels at most `GAP` away, across and diagonally."""
    height, width = solid_hw.shape
    tall = np.zeros((height + 2 * GAP, width), bool)
    grown_hw = np.zeros((height + 2 * GAP, width + 2 * GAP), bool)
    for shift in range(2 * GAP + 1):
        tall[shift : shift + height] |= solid_hw
    for shift in range(2 * GAP + 1):
        grown_hw[:, shift : shift + width] |= tall
    return grown_hw
