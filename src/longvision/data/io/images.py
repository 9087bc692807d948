"""Reading images: what Pillow decodes becomes an upright 8-bit "L" or "RGB" image, the rest an error."""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from longvision.data.io.listing import files_below
from longvision.data.io.limits import check_pixels, without_pillows_limit
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.types import Size

Channels = Literal[1, 3]

IMAGE_WIDTH, IMAGE_LENGTH = 256, 257  # tags of TIFF
# What Pillow's decoders let through when the bytes are damaged: they parse headers with struct, slices and
# dict lookups, and not every plugin turns the failure into an OSError.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
SIDEWAYS = (5, 6, 7, 8)  # the EXIF orientations of an image lying on its side
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what makes an image of each EXIF orientation upright


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
    if isinstance(source, str | Path):
        name, source = name or str(source), _bytes_of(Path(source))
    if isinstance(source, bytes):
        name = name or f"an image of {len(source)} bytes"
        if not source:
            raise UnreadableImage(f"{name} cannot be read as an image: the file is empty")
    name = name or "an image"
    with without_pillows_limit(), _decoding(name):
        image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
        check_pixels(name, *image.size)
        image.load()
    return as_channels(upright(image), channels)


@dataclass(frozen=True)
class Header:
    """What an image file says of itself before a pixel is decoded.

    Args:
        size: height and width as `read_image` turns it.
        orientation: how it is to be turned, 1 to 8 as in EXIF; 1 is upright.
    """

    size: Size
    orientation: int = 1

    @property
    def stored(self) -> Size:
        """Height and width before it is turned."""
        height, width = self.size
        return (width, height) if self.orientation in SIDEWAYS else self.size


def read_header(path: str | Path) -> Header | None:
    """None for what does not begin as an image."""
    try:
        with without_pillows_limit(), Image.open(path) as image:
            orientation = _orientation(image)
            width, height = _stored_size(image)
    except DECODE_ERRORS:
        return None
    return Header((width, height) if orientation in SIDEWAYS else (height, width), orientation)


def is_image(path: str | Path) -> bool:
    """Whether the file begins as an image does; no pixel is decoded."""
    try:
        with without_pillows_limit(), Image.open(path):
            return True
    except DECODE_ERRORS:
        return False


def upright_size(path: str | Path) -> Size | None:
    """Height and width of an image as `read_image` turns it; None for what does not begin as an image."""
    header = read_header(path)
    return None if header is None else header.size


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
        if not path.exists():
            raise MissingFileError(f"{path} does not exist: give image files, or folders of them")
        below = [Path(file) for file in files_below(path)] if path.is_dir() else [path]
        if not below:
            raise UserError(f"{path} holds no files: give image files, or folders of them")
        found += below
    return found


def _bytes_of(path: Path) -> bytes:
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: give the path of an image file")
    if path.is_dir():
        raise UnreadableImage(f"{path} is a folder: give the path of an image file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn every way in which decoding fails into an UnreadableImage that says which image and why."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name} is not an image in a format that Pillow knows") from error
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UnreadableImage(f"{name} cannot be read as an image: {reason}") from error


def upright(image: Image.Image) -> Image.Image:
    """Turn a loaded image as its orientation tag says, if that was not done: some versions of Pillow turn a TIFF when
    they load it, and take the tag away."""
    move = TURNS.get(_orientation(image))
    return image if move is None else image.transpose(move)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:  # a damaged EXIF block turns nothing
        return 1
    return found if found in range(1, 9) else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in the file. Some versions of Pillow call a TIFF's size the one to which it will be turned."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(IMAGE_WIDTH, image.width), tags.get(IMAGE_LENGTH, image.height)
