"""What values a set's images hold: looked at over the set, so that no image is scaled by its own."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longvision.data.io.decoding import DECODE_ERRORS
from longvision.data.io.deep import DeepImage, Range
from longvision.data.io.deep_files import is_deep_png, is_deep_tiff
from longvision.data.io.images import DEEP_MODES, read_image
from longvision.data.io.limits import without_pillows_limit
from longvision.data.io.threads import in_threads
from longvision.data.problems import listing
from longvision.errors import UserError

MOST_IMAGES = 1000  # of a set that are looked at, spread evenly
MOST_PIXELS = 4096  # of an image, drawn by chance, for shares of all values; the ends are of all pixels
OUTLIERS = 0.001  # the share of values that may not use up
SWALLOWED = 0.75  # this share of the range


@dataclass(frozen=True)
class Look:
    """What one image holds.

    Args:
        file: its name.
        pages: whether there are several.
        profile: whether its colours are those of a profile other than sRGB.
        deep: whether it is a `DeepImage`; what follows is of such images alone.
        dtype: of its values.
        low, high: the lowest and the highest finite value.
        strange: how many values are no finite number.
        pixels: (M, C) some of the finite ones.
    """

    file: str
    pages: bool = False
    profile: bool = False
    deep: bool = False
    dtype: str = "uint8"
    low: float = 0.0
    high: float = 0.0
    strange: int = 0
    pixels: np.ndarray | None = None


def look_at(files: Sequence[str | bytes], channels: int) -> list[Look]:
    """Those that can be read. Images of 8 bits are not decoded, except where a mean is to be measured."""
    found = in_threads(lambda file: _look(file, channels), files)
    return [look for look in found if look is not None]


def range_of(looks: Sequence[Look]) -> Range | None:
    """Of integers from 0 up, 0 to the highest number of as many bits as they use; of floats from 0 to 1, that; else
    the lowest and highest value. None where no image is deep."""
    deep = [look for look in looks if look.deep and look.dtype != "uint8"]
    if not deep:
        return None
    low, high = min(look.low for look in deep), max(look.high for look in deep)
    if low >= 0 and all(np.issubdtype(look.dtype, np.integer) for look in deep):
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1


def mean_and_std(looks: Sequence[Look], range: Range | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, on the scale from 0 to 1."""
    pixels = [
        DeepImage(look.pixels[:, None].astype(look.dtype)).scaled(range).values_HWC[:, 0]
        for look in looks
        if look.pixels is not None and len(look.pixels)
    ]
    if not pixels:
        raise UserError("none of the images can be read: give data.mean and data.std, a number a channel")
    values_MC = np.concatenate(pixels).astype(np.float64)
    std = np.maximum(values_MC.std(0), 1e-3)
    return tuple(values_MC.mean(0).round(4).tolist()), tuple(std.round(4).tolist())


def notes_of(looks: Sequence[Look], range: Range | None, name: str) -> list[str]:
    """Lines for a user: how the values are read, and what stands in the way of that."""
    total, notes = len(looks), []
    deep = [look for look in looks if look.deep and look.dtype != "uint8"]
    if deep:
        low, high = min(look.low for look in deep), max(look.high for look in deep)
        types = ", ".join(sorted({look.dtype for look in deep}))
        ends = f"{range[0]:.7g} to {range[1]:.7g}" if isinstance(range, tuple) else f"{range} (of its type, or its own)"
        notes.append(
            f"{name}: {len(deep)} of {total} training images looked at have {types} values, from {low:.7g} to "
            f"{high:.7g}: black to white is {ends}; data.range sets it"
        )
        if len(deep) < total:
            notes.append(f"{name}: the other {total - len(deep)} have 8 bits and are read from 0 to 255")
        notes += _outliers(deep, range, name)
    if strange := [look for look in looks if look.strange]:
        notes.append(
            f"{name}: {sum(look.strange for look in strange)} values of {len(strange)} images are no number or "
            f"infinite ({listing([look.file for look in strange])}): they become black, infinity white"
        )
    if pages := [look.file for look in looks if look.pages]:
        notes.append(f"{name}: {len(pages)} of {total} files have several pages ({listing(pages)}): the first is used")
    if profiles := [look.file for look in looks if look.profile]:
        notes.append(
            f"{name}: {len(profiles)} of {total} images have a colour profile other than sRGB ({listing(profiles)}): "
            "their values are taken as they are stored"
        )
    return notes


def _outliers(deep: Sequence[Look], range: Range | None, name: str) -> list[str]:
    """Where a few values take most of the range."""
    values = np.concatenate([look.pixels.ravel() for look in deep if look.pixels is not None])
    if not isinstance(range, tuple) or not len(values):
        return []
    low, high = np.quantile(values, [OUTLIERS, 1 - OUTLIERS])
    inside = min(high, range[1]) - max(low, range[0])
    if inside > (1 - SWALLOWED) * (range[1] - range[0]):
        return []
    return [
        f"{name}: 99.8 % of the values lie from {low:.5g} to {high:.5g}, a few others take the rest of the range: "
        f"--data.range [{low:.5g},{high:.5g}] would leave them out"
    ]


def _look(file: str | bytes, channels: int) -> Look | None:
    name = Path(file).name if isinstance(file, str) else "an image"
    try:
        content = Path(file).read_bytes() if isinstance(file, str) else file
        pages, profile, maybe_deep = _header(content)
        if not maybe_deep and channels in (1, 3):
            return Look(name, pages, profile)
        image = read_image(content, channels, name)
    except (UserError, OSError):
        return None
    if not isinstance(image, DeepImage):
        return Look(name, pages, profile)
    values = image.values_HWC
    finite = np.isfinite(values)
    counted = values[finite] if finite.any() else np.zeros(1)
    low, high = float(counted.min()), float(counted.max())
    flat = values.reshape(-1, values.shape[2])
    some = flat if len(flat) <= MOST_PIXELS else flat[_draw(len(flat))]
    some = some[np.isfinite(some).all(1)]
    return Look(name, pages, profile, True, str(values.dtype), low, high, int((~finite).sum()), some)


def _draw(count: int) -> np.ndarray:
    """Numbers of pixels: by chance, since steps of one length may meet the same columns in every row."""
    return np.random.default_rng(0).integers(count, size=MOST_PIXELS)


def _header(content: bytes) -> tuple[bool, bool, bool]:
    """Whether there are several pages, a profile other than sRGB, and perhaps more than 8 bits."""
    try:
        with without_pillows_limit(), Image.open(io.BytesIO(content)) as image:
            profile = image.info.get("icc_profile") or b""
            pages = bool(getattr(image, "is_animated", False)) or getattr(image, "n_frames", 1) > 1
            deep = (
                image.mode in DEEP_MODES or is_deep_png(content) or (image.format == "TIFF" and is_deep_tiff(content))
            )
    except DECODE_ERRORS:
        return False, False, True
    return pages, bool(profile) and b"sRGB" not in profile, deep
