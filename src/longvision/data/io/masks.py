"""Reading masks: an image file of class numbers, or of the classes' colours, becomes (H, W) bytes of class numbers."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longvision.data.io.images import decoded
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.types import IGNORE, Colour

DEEP = 1 << 16  # values of a mask with 16 bits
NUMBERED = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
NAMED = 5  # values that a message lists


class BadMask(UserError):
    """A mask that cannot be read, or with values that no class has."""


@dataclass(frozen=True)
class MaskReader:
    """How the values of mask files become class numbers; 255 neither trains nor counts.

    Args:
        classes: how many, K; numbers from 0 to K - 1 are classes.
        palette: the classes' colours, for masks in colour; without them those are refused.
        ignore: further values, or colours, of pixels that do not count, as the files have them.
        reduce_zero_label: value 0 does not count, value k is class k - 1, as in ADE20K. 254 classes at most, as value
            255 does not count.
        binary: values from 128 are class 1, those below class 0; in colour masks, the brightest channel's. In a mask
            of 0 and 1, value 1 is class 1.
    """

    classes: int
    palette: tuple[Colour, ...] = ()
    ignore: tuple[int | Colour, ...] = ()
    reduce_zero_label: bool = False
    binary: bool = False
    _table: np.ndarray = field(init=False, repr=False, compare=False)  # value -> class, 255, or -1 for neither

    def __post_init__(self) -> None:
        if self.reduce_zero_label and self.classes >= IGNORE:
            raise UserError(
                f"{self.classes} classes with reduce_zero_label: expected {IGNORE - 1} at most, "
                f"as the value {IGNORE} does not count"
            )
        object.__setattr__(self, "_table", self._class_of_value())

    def read(self, path: str | Path) -> np.ndarray:
        """(H, W) uint8. A value that no class has is a `BadMask`, as is a file that is no mask."""
        values = read_values(path)
        if self.binary:
            return binary_numbers(values)
        numbers_HW = self._by_colour(values) if values.ndim == 3 and self.palette else self._by_value(values, path)
        if (numbers_HW < 0).any():
            raise BadMask(f"{path} has {_found(values[numbers_HW < 0])}: {self._expected(values)}")
        return numbers_HW.astype(np.uint8)

    def _class_of_value(self) -> np.ndarray:
        table = np.full(DEEP, -1, np.int16)
        table[0] = IGNORE  # unless it is a class
        first = int(self.reduce_zero_label)
        table[first : first + self.classes] = np.arange(self.classes)
        table[self._ignored()] = IGNORE
        return table

    def _ignored(self) -> list[int]:
        return sorted({IGNORE, *(value for value in self.ignore if isinstance(value, int))})

    def _by_value(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        values = as_grey(values, path)
        if values.dtype != np.int32:
            return self._table[values]
        inside = (values >= 0) & (values < DEEP)
        return np.where(inside, self._table[np.where(inside, values, 0)], -1)

    def _by_colour(self, colours_HW3: np.ndarray) -> np.ndarray:
        numbers = {colour: number for number, colour in enumerate(self.palette)}
        numbers |= {colour: IGNORE for colour in self.ignore if not isinstance(colour, int)}
        codes, order = np.unique(_codes(np.array(list(numbers), np.uint8)), return_index=True)
        number_of = np.array(list(numbers.values()), np.int16)[order]
        found_HW = _codes(colours_HW3)
        at_HW = np.minimum(np.searchsorted(codes, found_HW), len(codes) - 1)
        return np.where(codes[at_HW] == found_HW, number_of[at_HW], -1)

    def _expected(self, values: np.ndarray) -> str:
        if values.ndim == 3 and self.palette:
            return f"expected the colours of the {self.classes} classes"
        first = int(self.reduce_zero_label)
        ignored = " or ".join(map(str, self._ignored()))
        return f"expected {first} to {first + self.classes - 1}, or {ignored} for pixels to ignore"


def read_values(path: str | Path) -> np.ndarray:
    """A mask as its file has it, upright: (H, W) of grey values or palette indices, or (H, W, 3) of colours.

    uint8, or for 16-bit files uint16 or int32. Transparency is left out.
    """
    try:
        image = decoded(path)
    except UnreadableImage as error:
        raise BadMask(str(error).replace("as an image", "as a mask")) from error
    except MissingFileError as error:
        raise BadMask(f"{path} does not exist") from error
    if image.mode in NUMBERED:
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[:, :, 0]
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return np.asarray(image)[:, :, :3]
    raise BadMask(f"{path} is an image of mode {image.mode}: expected grey values, palette indices or RGB colours")


def as_grey(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Values as a file has them -> (H, W). Raises BadMask for colours."""
    if values.ndim == 2:
        return values
    if (values != values[:, :, :1]).any():
        raise BadMask(f"{path} is in colour: give a classes_file with the colour of each class")
    return values[:, :, 0]


def binary_numbers(values: np.ndarray) -> np.ndarray:
    """Values as a file has them -> (H, W) uint8 of 0 and 1."""
    if values.ndim == 3:
        values = values.max(2)
    least = 1 if values.max(initial=0) <= 1 else 128
    return (values >= least).astype(np.uint8)


def _codes(colours: np.ndarray) -> np.ndarray:
    """(..., 3) bytes -> (...) one number a colour."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue


def _found(values: np.ndarray) -> str:
    """Values (M,) or colours (M, 3) -> the first of them in words."""
    kinds = np.unique(values, axis=0).tolist()
    what = "colour" if values.ndim == 2 else "value"
    words = ", ".join(f"({', '.join(map(str, kind))})" if values.ndim == 2 else str(kind) for kind in kinds[:NAMED])
    return f"the {what}{'s' * (len(kinds) > 1)} {words}{', …' * (len(kinds) > NAMED)}"
