"""Masks as a class file says them: class numbers, or the classes' colours, become (H, W) bytes of class numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from longvision.data.io.masks import BadMask, MaskFile, as_grey, binary_numbers, codes_of, read_mask
from longvision.data.problems import listing
from longvision.errors import UserError
from longvision.types import IGNORE, Colour

DEEP = 1 << 16  # values of a mask with 16 bits

Way = Literal["colours", "numbers", None]  # by which a mask was read; None where both say the same


@dataclass(frozen=True)
class Reading:
    """(H, W) uint8 class numbers, 255 where nothing counts; by which way; and the file's grey values, or none."""

    numbers_HW: np.ndarray
    way: Way
    values: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MaskReader:
    """How the values of mask files become class numbers; 255 neither trains nor counts.

    Where the classes have colours, these go before numbers: in colour files, in palette files whatever their order, and
    in grey ones where all the classes are grey or other masks of the set are in colour. A palette whose colours are
    not the classes' counts by its indices.

    Args:
        classes: how many, K.
        palette: the classes' colours, for masks in colour; without them those are refused.
        ignore: further values, or colours, of pixels that do not count, as the files have them.
        reduce_zero_label: value 0 does not count, value k is class k - 1, as in ADE20K. 254 classes at most, as value
            255 does not count.
        binary: values from 128 are class 1, those below class 0; in colour masks, the brightest channel's. In a mask
            of 0 and 1, value 1 is class 1.
        values: of the classes in masks; 0 to K - 1 where there are none.
        numbered: False where the classes are known by their colours alone.
        in_colour: whether other masks of the set have colours.
    """

    classes: int
    palette: tuple[Colour, ...] = ()
    ignore: tuple[int | Colour, ...] = ()
    reduce_zero_label: bool = False
    binary: bool = False
    values: tuple[int, ...] = ()
    numbered: bool = True
    in_colour: bool = False
    _table: np.ndarray = field(init=False, repr=False, compare=False)  # value -> class, 255, or -1 for neither

    def __post_init__(self) -> None:
        if self.reduce_zero_label and self.classes >= IGNORE:
            raise UserError(
                f"{self.classes} classes with reduce_zero_label: expected {IGNORE - 1} at most, "
                f"as the value {IGNORE} does not count"
            )
        if self.reduce_zero_label and self.values and self.values != tuple(range(1, self.classes + 1)):
            raise UserError(
                f"reduce_zero_label with classes that have the numbers {_some(self.values)}: leave it out, or number "
                f"them 1 to {self.classes}"
            )
        object.__setattr__(self, "_table", self._class_of_value())

    def read(self, path: str | Path) -> np.ndarray:
        """(H, W) uint8. A value that no class has is a `BadMask`, as is a file that is no mask."""
        return self.reading(path).numbers_HW

    def reading(self, path: str | Path) -> Reading:
        """Raises as `read`."""
        file = read_mask(path)
        if self.binary:
            return Reading(binary_numbers(file), None)
        if file.lossy:
            raise BadMask(
                f"{path} is compressed with loss, which changes the values: give masks as PNG, or a classes_file with "
                '"binary": true where values from 128 are the one class and those below the other'
            )
        if file.values.ndim == 3 and self.palette:
            return self._by_colour(file.values, path)
        return self._by_value(file, path)

    def _class_of_value(self) -> np.ndarray:
        """Classes go before 255, and what is ignored on purpose before classes."""
        table = np.full(DEEP, -1, np.int16)
        table[[0, IGNORE] if self.reduce_zero_label else [IGNORE]] = IGNORE
        if self.numbered:
            table[list(self._class_values())] = np.arange(self.classes)
        table[[value for value in self.ignore if isinstance(value, int)]] = IGNORE
        return table

    def _class_values(self) -> tuple[int, ...]:
        first = int(self.reduce_zero_label)
        return self.values or tuple(range(first, first + self.classes))

    def _by_value(self, file: MaskFile, path: str | Path) -> Reading:
        values = as_grey(file.values, path)
        outside = values.dtype == np.int32 and bool(((values < 0) | (values >= DEEP)).any())
        if outside:
            raise BadMask(f"{path} has {_found(values[(values < 0) | (values >= DEEP)])}: {self._expected()}")
        present = np.flatnonzero(np.bincount(values.ravel()))
        numbers, way = self._decide(present, self._colours(present, file), path)
        lookup = np.zeros(DEEP, np.uint8)
        lookup[present] = numbers
        return Reading(lookup[values], way, frozenset(present.tolist()))

    def _colours(self, present: np.ndarray, file: MaskFile) -> np.ndarray | None:
        """(M, 3) of the values (M,) in a file; None where only numbers can be meant."""
        if not self.palette:
            return None
        if file.palette is not None:
            return file.palette[present]
        all_grey = all(red == green == blue for red, green, blue in self.palette)
        if file.bits > 8 or not (all_grey or self.in_colour):
            return None
        return (present * (255 if file.bits == 1 else 1))[:, None].repeat(3, 1).astype(np.uint8)

    def _decide(self, present: np.ndarray, colours: np.ndarray | None, path: str | Path) -> tuple[np.ndarray, Way]:
        """Classes of the values (M,) of one file. Raises BadMask where no way, or both ways differently, fit."""
        by_number = self._table[present]
        if colours is None:
            if (by_number < 0).any():
                raise BadMask(f"{path} has {_found(present[by_number < 0])}: {self._expected()}")
            return by_number, "numbers" if self.palette else None
        by_colour = self._class_of_colour(colours)
        if (by_colour >= 0).all():
            return by_colour, None if (by_colour == by_number).all() else "colours"
        if (by_number < 0).any():
            raise BadMask(f"{path} has {_found(colours[by_colour < 0])}: {self._expected(True)}")
        known = by_colour >= 0
        if (by_colour[known] != by_number[known]).any():
            raise BadMask(
                f"{path} has colours of other classes than its numbers say, and {_found(colours[~known])}, which no "
                "class has: give all its colours in the classes_file, or a classes_file without colours"
            )
        return by_number, "numbers"

    def _by_colour(self, colours_HW3: np.ndarray, path: str | Path) -> Reading:
        numbers_HW = self._class_of_colour(colours_HW3)
        if (numbers_HW < 0).any():
            raise BadMask(f"{path} has {_found(colours_HW3[numbers_HW < 0])}: {self._expected(True)}")
        return Reading(numbers_HW.astype(np.uint8), "colours")

    def _class_of_colour(self, colours: np.ndarray) -> np.ndarray:
        """(..., 3) -> (...) classes, 255, or -1 for a colour that is neither."""
        numbers = {colour: number for number, colour in enumerate(self.palette)}
        numbers |= {colour: IGNORE for colour in self.ignore if not isinstance(colour, int)}
        codes, order = np.unique(codes_of(np.array(list(numbers), np.uint8)), return_index=True)
        number_of = np.array(list(numbers.values()), np.int16)[order]
        found = codes_of(colours)
        at = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
        return np.where(codes[at] == found, number_of[at], -1)

    def _expected(self, in_colour: bool = False) -> str:
        if in_colour or not self.numbered:
            return (
                f"expected the colours of the {self.classes} classes; give others in the classes_file too, as classes "
                'or as "ignore"'
            )
        ignored = sorted({IGNORE, *(value for value in self.ignore if isinstance(value, int))} - set(self.values))
        return f"expected {_some(self._class_values())}, or {' or '.join(map(str, ignored))} for pixels to ignore"


def _some(values: tuple[int, ...]) -> str:
    if values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return listing([str(value) for value in values])


def _found(values: np.ndarray) -> str:
    """Values (M,) or colours (M, 3) -> the first of them in words."""
    kinds = np.unique(values, axis=0).tolist()
    what = "colour" if values.ndim == 2 else "value"
    words = [f"({', '.join(map(str, kind))})" if values.ndim == 2 else str(kind) for kind in kinds]
    return f"the {what}{'s' * (len(kinds) > 1)} {listing(words)}"
