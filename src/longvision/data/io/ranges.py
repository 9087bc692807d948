"""What values a set's images hold: looked at over the set, so that no image is scaled by its own."""

import io
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvision.data.io.deep import DeepImage, Range, Seen, finite_ends
from longvision.data.io.depth import Facts, facts_of, pages_note
from longvision.data.io.images import read_image
from longvision.data.io.threads import in_threads
from longvision.data.problems import listing
from longvision.errors import UserError

MOST_IMAGES = 1000  # of a set that are looked at, spread evenly
MOST_VALUES = 12_288  # of an image, of pixels drawn by chance, for shares of all values; the ends are of all pixels
LARGE = 50_000_000  # bytes of a file; of such, one is read at a time
OUTLIERS = 0.001  # the share of values that may not use up
SWALLOWED = 0.75  # this share of the range
DARKEST = 0.01  # the share of images that may be darker than what is noted as their brightness

File = str | bytes  # a path, or the encoded bytes themselves
_one_large = threading.Lock()


@dataclass(frozen=True)
class Look:
    """What one file says of itself.

    Args:
        file: where it is.
        facts: what its header says.
    """

    file: File
    facts: Facts

    @property
    def name(self) -> str:
        return Path(self.file).name if isinstance(self.file, str) else "an image"


@dataclass(frozen=True)
class Values:
    """What one image holds.

    Args:
        name: of its file.
        dtype: of its values.
        low: the lowest finite value.
        high: the highest.
        strange: how many values are no finite number.
        pixels: (M, C) some of the finite ones.
        bits: how many its file says that integers use; 0 where it does not.
    """

    name: str
    dtype: np.dtype
    low: float
    high: float
    strange: int
    pixels: np.ndarray
    bits: int = 0

    @property
    def white(self) -> float:
        """Of integers from 0 up: the highest number of as many bits as the file says, or as the values use. Of a PNG
        with more than it says, the bits are the upper ones."""
        if self.bits and self.high >= 2**self.bits:
            return float(np.iinfo(self.dtype).max)
        return float(2 ** max(8, self.bits, int(self.high).bit_length()) - 1)


def look_at(files: Sequence[File], channels: int) -> list[Look]:
    """The headers of those that are images."""

    def look(file: File) -> Look | None:
        try:
            with open(file, "rb") if isinstance(file, str) else io.BytesIO(file) as opened:
                facts = facts_of(opened, channels)
        except OSError:
            return None
        return None if facts is None else Look(file, facts)

    return [found for found in in_threads(look, files) if found is not None]


def values_of(looks: Sequence[Look], channels: int) -> list[Values]:
    """Decode the images of those that can be read as deep ones, or in other channels than 1 and 3."""
    found = in_threads(lambda look: _values(look, channels), looks)
    return [values for values in found if values is not None]


def range_of(values: Sequence[Values]) -> Range | None:
    """Of integers from 0 up, 0 to the highest number of as many bits as they use; of floats from 0 to 1, that; else
    the lowest and highest value. None where no image is deep."""
    deep = [one for one in values if one.dtype != np.uint8]
    if not deep:
        return None
    low, high = min(one.low for one in deep), max(one.high for one in deep)
    if low >= 0 and all(np.issubdtype(one.dtype, np.integer) for one in deep):
        return 0.0, max(one.white for one in deep)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def seen_in(values: Sequence[Values], has_bytes: bool) -> tuple[Seen, ...]:
    """The types of the values, each with how bright its images are."""
    highest: dict[str, list[float]] = {"uint8": [255.0]} if has_bytes else {}
    for one in values:
        if one.dtype != np.uint8:
            highest.setdefault(str(one.dtype), []).append(one.high)
    return tuple(
        (dtype, max(ends), float(np.quantile(ends, DARKEST, method="lower"))) for dtype, ends in sorted(highest.items())
    )


def mean_and_std(values: Sequence[Values], range: Range | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, on the scale from 0 to 1."""
    pixels = []
    for one in values:
        own = (one.low, max(one.high, one.low + 1e-6)) if range == "image" else range
        pixels.append(DeepImage(one.pixels[:, None]).scaled(own).values_HWC[:, 0])
    if not any(map(len, pixels)):
        raise UserError("none of the images can be read: give data.mean and data.std, a number a channel")
    values_MC = np.concatenate(pixels)
    std = np.maximum(values_MC.std(0, dtype=np.float64), 1e-3)
    return tuple(values_MC.mean(0, dtype=np.float64).round(4).tolist()), tuple(std.round(4).tolist())


def notes_of(looks: Sequence[Look], given: Range | None, name: str) -> list[str]:
    """Lines for a user of what stands in the headers, where the range was `given` or not."""
    total, notes = len(looks), []
    deep = [look for look in looks if look.facts.deep]
    if given is not None and looks and not deep:
        notes.append(
            f"{name}: data.range has no effect: none of the {total} training images looked at has more than 8 bits a "
            "value, and bytes are read from 0 to 255"
        )
    if deep and len(deep) < total:
        notes.append(f"{name}: {total - len(deep)} of {total} training images have 8 bits and are read from 0 to 255")
    if pages := [look.name for look in looks if look.facts.other_pages]:
        notes.append(f"{name}: {pages_note(pages, total)}")
    if profiles := [look.name for look in looks if look.facts.profile]:
        notes.append(
            f"{name}: {len(profiles)} of {total} images have a colour profile other than sRGB ({listing(profiles)}): "
            "their values are taken as they are stored"
        )
    return notes


def notes_of_values(values: Sequence[Values], range: Range, name: str) -> list[str]:
    """Lines for a user: how the values of deep images are read, and what stands in the way of that."""
    deep = [one for one in values if one.dtype != np.uint8]
    low, high = min(one.low for one in deep), max(one.high for one in deep)
    types = ", ".join(sorted({str(one.dtype) for one in deep}))
    bits = sorted({one.bits for one in deep if one.bits})
    stated = f", and their files say {' or '.join(map(str, bits))} bits" if bits else ""
    assert isinstance(range, tuple)  # what `range_of` found
    notes = [
        f"{name}: {len(deep)} training images looked at have {types} values, from {low:.7g} to {high:.7g}{stated}: "
        f"black to white is {range[0]:.7g} to {range[1]:.7g}; data.range sets it",
        *_outliers(deep, range, name),
    ]
    if strange := [one for one in deep if one.strange]:
        notes.append(
            f"{name}: {sum(one.strange for one in strange)} values of {len(strange)} images are no number or "
            f"infinite ({listing([one.name for one in strange])}): they become black, infinity white"
        )
    return notes


def _outliers(deep: Sequence[Values], range: tuple[float, float], name: str) -> list[str]:
    """Where a few values take most of the range."""
    values = np.concatenate([one.pixels.ravel() for one in deep])
    if not len(values):
        return []
    low, high = np.quantile(values, [OUTLIERS, 1 - OUTLIERS])
    inside = min(high, range[1]) - max(low, range[0])
    if inside > (1 - SWALLOWED) * (range[1] - range[0]):
        return []
    if low == high:
        return [f"{name}: 99.8 % of the values are {low:.5g}: the images show little else"]
    return [
        f"{name}: 99.8 % of the values lie from {low:.5g} to {high:.5g}, a few others take the rest of the range: "
        f"--data.range [{low:.5g},{high:.5g}] would leave them out"
    ]


def _values(look: Look, channels: int) -> Values | None:
    try:
        content = Path(look.file).read_bytes() if isinstance(look.file, str) else look.file
        with _one_large if len(content) > LARGE else nullcontext():
            image = read_image(content, channels, look.name)
            if not isinstance(image, DeepImage):
                return None
            values = image.values_HWC
            low, high, strange = finite_ends(values)
    except (UserError, OSError):
        return None
    flat = values.reshape(-1, values.shape[2])
    most = max(16, MOST_VALUES // values.shape[2])
    some = flat if len(flat) <= most else flat[_draw(len(flat), most)]
    some = some[np.isfinite(some).all(1)]
    return Values(look.name, values.dtype, low, high, strange, some.copy(), look.facts.bits)


def _draw(count: int, most: int) -> np.ndarray:
    """Numbers of pixels: by chance, since steps of one length may meet the same columns in every row."""
    return np.random.default_rng(0).integers(count, size=most)
