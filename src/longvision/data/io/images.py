"""Reading images: upright, in the channels that are asked for; what cannot be read is an error."""

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from PIL import Image

from longvision.data.io.decode_errors import decoding
from longvision.data.io.deep import AnyImage, DeepImage
from longvision.data.io.deep_files import read_deep
from longvision.data.io.depth import DEEP_MODES, tell_lost_bits
from longvision.data.io.headers import read_header
from longvision.data.io.limits import check_pixels, without_pillows_limit
from longvision.data.io.listing import Listing, list_files
from longvision.data.io.orientation import upright
from longvision.data.problems import listing
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.types import Size

Channels = int  # 1 for grey, 3 for colour, or what a file has
_NEEDED: ContextVar[Size | None] = ContextVar("_NEEDED", default=None)


@contextmanager
def decoded_at_least(size: Size | None) -> Iterator[None]:
    """Within it JPEG files may be decoded at a half, a quarter or an eighth of their size, in as much less time, where
    that is no smaller than this height and width, for an image that lies as it does. None: at their size."""
    before = _NEEDED.set(size)
    try:
        yield
    finally:
        _NEEDED.reset(before)


def read_image(source: str | Path | bytes | Image.Image, channels: Channels = 3, name: str | None = None) -> AnyImage:
    """Decode the first page of `source`, upright.

    8 bits a value become a Pillow image of mode "L" (1 channel) or "RGB" (3), transparency composited on white. More
    bits, signed numbers and floats, and other numbers of channels, stay as the file has them, in a `DeepImage`.

    Args:
        source: a path, the encoded bytes themselves, or what Pillow has opened.
        channels: 1 for grey, 3 for colour; any other number for files of as many.
        name: what an error calls the image; the path when left out.

    Raises:
        MissingFileError: no such file.
        UnreadableImage: not an image, one that cannot be decoded whole, or one of other channels.
    """
    source, name = _content(source, name)
    deep = read_deep(source, channels, name) if isinstance(source, bytes) else None
    return as_channels(decoded(source, name) if deep is None else deep, channels, name)


def decoded(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """The first page, upright, in the mode that Pillow gives it. Raises as `read_image`."""
    source, name = _content(source, name)
    with without_pillows_limit(), decoding(name):
        image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(source))
        check_pixels(name, *image.size)
        if isinstance(source, bytes):
            tell_lost_bits(source, image)
        if (needed := _NEEDED.get()) and image.format == "JPEG":
            short, long = sorted(needed)
            image.draft(None, (long, short) if image.width >= image.height else (short, long))
        if name_of_file := getattr(image, "filename", ""):
            # else Pillow maps a TIFF file into memory as if it had the size to which it will be turned
            image.filename = ""  # type: ignore[attr-defined]
        image.load()
        if name_of_file:  # the image may be the caller's
            image.filename = name_of_file  # type: ignore[attr-defined]
        if image.format == "PPM" and image.mode == "I":  # Pillow scales the file's own range to 16 bits
            return upright(Image.fromarray(np.asarray(image).astype(np.uint16)))
        return _in_rgb(upright(image)) if image.mode == "LAB" else upright(image)


def is_image(path: str | Path) -> bool:
    """Whether the file begins as an image does; no pixel is decoded."""
    return read_header(path) is not None


def why_unreadable(path: str | Path) -> UnreadableImage:
    """Of a file that does not begin as an image: the reason, in the words of `read_image`."""
    try:
        decoded(path)
    except UnreadableImage as error:
        return error
    except MissingFileError as error:
        return UnreadableImage(str(error))
    return UnreadableImage(f"{path} is not an image")


def as_channels(image: AnyImage, channels: Channels, name: str = "an image") -> AnyImage:
    """Any mode -> "L" or "RGB", transparency composited on white; what has more than 8 bits, or is to have other
    channels, -> `DeepImage`. Raises UnreadableImage where it has not as many channels."""
    if isinstance(image, DeepImage):
        return image.in_channels(channels)
    if image.mode in DEEP_MODES:
        return DeepImage(np.asarray(image)[:, :, None], name).in_channels(channels)
    if channels not in (1, 3):
        if image.mode not in ("LA", "RGBA"):  # else its alpha is a channel as others are
            image = image.convert("RGB") if image.mode != "CMYK" else image
        return DeepImage(np.atleast_3d(np.asarray(image)), name).in_channels(channels)
    mode = "L" if channels == 1 else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


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


def _content(source: str | Path | bytes | Image.Image, name: str | None) -> tuple[bytes | Image.Image, str]:
    """A file's bytes, or what is open already, and its name."""
    if isinstance(source, str | Path):
        name, source = name or str(source), _bytes_of(Path(source))
    if not isinstance(source, bytes):
        return source, name or "an image"
    name = name or f"an image of {len(source)} bytes"
    if not source:
        raise UnreadableImage(f"{name} cannot be read as an image: the file is empty")
    return source, name


def _in_rgb(image: Image.Image) -> Image.Image:
    """Of CIELAB, which Pillow does not convert by itself."""
    from PIL import ImageCms

    turned = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert turned is not None
    return turned


def _bytes_of(path: Path) -> bytes:
    if not os.path.exists(path):
        raise MissingFileError(f"{path} does not exist: give the path of an image file")
    if path.is_dir():
        raise UnreadableImage(f"{path} is a folder: give the path of an image file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read: {error.strerror}") from error
