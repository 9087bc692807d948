"""Reading images: what Pillow decodes becomes an upright 8-bit "L" or "RGB" image, the rest an error."""

import io
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from longvision.data.io.decoding import DECODE_ERRORS, decoding
from longvision.data.io.limits import check_pixels, without_pillows_limit
from longvision.data.io.listing import Listing, list_files
from longvision.data.io.orientation import upright
from longvision.data.problems import listing
from longvision.errors import MissingFileError, UnreadableImage, UserError

Channels = Literal[1, 3]

DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read_image(
    source: str | Path | bytes | Image.Image, channels: Channels = 3, name: str | None = None
) -> Image.Image:
    """Decode the first frame of `source`, upright, as mode "L" (1 channel) or "RGB" (3 channels).

    Transparency is composited on white. More than 8 bits are scaled, not clipped: see `to_eight_bits`.

    Args:
        source: a path, the encoded bytes themselves, or what Pillow has opened.
        channels: 1 for grey, 3 for colour.
        name: what an error calls the image; the path when left out.

    Raises:
        MissingFileError: no such file.
        UnreadableImage: not an image, or one that cannot be decoded whole.
    """
    return as_channels(decoded(source, name), channels)


def decoded(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """The first frame, upright, in the mode that Pillow gives it. Raises as `read_image`."""
    if isinstance(source, str | Path):
        name, source = name or str(source), _bytes_of(Path(source))
    if isinstance(source, bytes):
        name = name or f"an image of {len(source)} bytes"
        if not source:
            raise UnreadableImage(f"{name} cannot be read as an image: the file is empty")
    name = name or "an image"
    with without_pillows_limit(), decoding(name):
        image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
        check_pixels(name, *image.size)
        if getattr(image, "filename", ""):
            # else Pillow maps a TIFF file into memory as if it had the size to which it will be turned
            image.filename = ""  # type: ignore[attr-defined]
        image.load()
    return upright(image)


def is_image(path: str | Path) -> bool:
    """Whether the file begins as an image does; no pixel is decoded."""
    try:
        with without_pillows_limit(), Image.open(path):
            return True
    except DECODE_ERRORS:
        return False


def why_unreadable(path: str | Path) -> UnreadableImage:
    """Of a file that does not begin as an image: the reason, in the words of `read_image`."""
    try:
        decoded(path)
    except UnreadableImage as error:
        return error
    except MissingFileError as error:
        return UnreadableImage(str(error))
    return UnreadableImage(f"{path} is not an image")


def as_channels(image: Image.Image, channels: Channels) -> Image.Image:
    """Any mode -> "L" or "RGB", transparency composited on white."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode in DEEP_MODES:
        image = to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits, or of floats, -> "L".

    Integers are read on the 16-bit scale (65535 is white), floats on the scale 0..1 when they fit there, else
    on 0..255. An image that fits none of these (negative values, larger ones) is stretched from its own
    lowest to its own highest value. What is not a number counts as 0.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    low, high = float(values.min()), float(values.max())
    whites = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if low >= 0 and high <= white), None)
    if white is None:
        # a flat image has no range to stretch
        values, white = values - low, (high - low) or 1.0
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files as they are given; folders replaced by all the files below them, sorted, hidden ones left out."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.exists(path):
            raise MissingFileError(f"{path} does not exist: give image files, or folders of them")
        below = list_files(path) if path.is_dir() else Listing([str(path)])
        if below.problems:
            warnings.warn(f"not used: {listing(below.problems, '; ')}", stacklevel=2)
        if not below.files:
            raise UserError(f"{path} holds no files: give image files, or folders of them")
        found += map(Path, below.files)
    return found


def _bytes_of(path: Path) -> bytes:
    if not os.path.exists(path):
        raise MissingFileError(f"{path} does not exist: give the path of an image file")
    if path.is_dir():
        raise UnreadableImage(f"{path} is a folder: give the path of an image file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read: {error.strerror}") from error
