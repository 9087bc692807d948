"""Files of masks: what they hold, before it is known what it means."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longvision.data.io.decode_errors import DECODE_ERRORS
from longvision.data.io.depth import is_deep
from longvision.data.io.images import decoded
from longvision.data.io.limits import without_pillows_limit
from longvision.errors import MissingFileError, UnreadableImage, UserError

NUMBERED = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")
# how files begin whose format gives back other values than were saved: JPEG; WebP, AVIF and HEIC behind their length
LOSSY = (b"\xff\xd8\xff",)
LOSSY_INSIDE = (b"WEBPVP8 ", b"ftypavif", b"ftypheic", b"ftypmif1")

KIND_OF_PAGE, SMALLER, TRANSPARENCY = 254, 1, 4  # a tag of TIFF, and bits of its value


class BadMask(UserError):
    """A mask that cannot be read, or with values that no class has."""


class UnreadableMask(BadMask, UnreadableImage):
    """A file that is no image, or a damaged one."""


@dataclass(frozen=True)
class MaskFile:
    """A mask as its file has it, upright.

    Args:
        values: (H, W) of grey values or palette indices, or (H, W, 3) of colours; uint8, or for 16-bit files uint16 or
            int32. Of one bit, 0 and 1.
        palette: uint8 (256, 3), the colours of the indices; None for grey values, and for a palette of greys that are
            their indices.
        lossy: whether the file's format changes values.
        bits: 1 where the file has no more; else 8, 16 or 32.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    lossy: bool = False
    bits: int = 8


def read_mask(path: str | Path) -> MaskFile:
    """Transparency is left out, where it says nothing that the colours do not say. Raises BadMask."""
    try:
        image = decoded(path)
    except UnreadableImage as error:
        raise UnreadableMask(str(error).replace("as an image", "as a mask")) from error
    except MissingFileError as error:
        raise UnreadableMask(f"{path} does not exist") from error
    if (pages := _pages(path)) > 1:
        raise BadMask(
            f"{path} has {pages} pages, of which it is not certain what they say: save the one that shows the classes"
        )
    if image.mode not in NUMBERED and _has_16_bits(image, path):
        raise BadMask(
            f"{path} has several channels of 16 bits, of which it is not certain what says the class: save it as grey "
            "values, or as colours of 8 bits"
        )
    lossy = _is_lossy(image, path)
    if image.mode in NUMBERED:
        values = np.asarray(image)
        bits = 1 if values.dtype == bool else 8 * values.itemsize
        values = values.astype(np.uint8) if bits == 1 else values
        return MaskFile(values, _colours_of(image), lossy, bits)
    if image.mode in ("LA", "PA"):
        both = np.asarray(image)
        values = both[:, :, 0]
        _check_alpha(values, both[:, :, 1], path)
        return MaskFile(values, _colours_of(image), lossy)
    if image.mode in ("RGB", "RGBA", "RGBX"):
        colours = np.asarray(image)
        if image.mode == "RGBA":
            _check_alpha(codes_of(colours[:, :, :3]), colours[:, :, 3], path)
        return MaskFile(colours[:, :, :3], None, lossy)
    what = "holds floats" if image.mode == "F" else f"is an image of mode {image.mode}"
    raise BadMask(f"{path} {what}: save it as whole numbers, palette indices or RGB colours")


def _pages(path: str | Path) -> int:
    """Of a file that can be decoded, without the smaller copies and the transparency that GeoTIFF keeps as pages."""
    with without_pillows_limit(), Image.open(path) as image:
        count = getattr(image, "n_frames", 1)
        if image.format != "TIFF" or count == 1:
            return count
        kinds = []
        for page in range(count):
            image.seek(page)
            kinds.append(image.tag_v2.get(KIND_OF_PAGE, 0))  # type: ignore[attr-defined]
    return sum(not kind & (SMALLER | TRANSPARENCY) for kind in kinds)


def _has_16_bits(image: Image.Image, path: str | Path) -> bool:
    """Of several channels, of which Pillow keeps the upper bytes: those of class numbers are all 0."""
    if image.mode not in ("LA", "RGB", "RGBA", "RGBX"):
        return False
    with open(path, "rb") as file:
        return is_deep(file)


def _is_lossy(image: Image.Image, path: str | Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(16)
    return (
        start.startswith(LOSSY)
        or any(word in start for word in LOSSY_INSIDE)
        or image.info.get("compression") == "jpeg"  # of TIFF
    )


def _colours_of(image: Image.Image) -> np.ndarray | None:
    """A palette's (256, 3); None where its colours are the indices themselves, or there is none."""
    if image.mode not in ("P", "PA"):
        return None
    colours = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    colours[: len(given)] = given
    is_ramp = np.array_equal(given, np.arange(len(given))[:, None].repeat(3, 1))
    return None if is_ramp else colours


def is_in_colour(path: str | Path) -> bool:
    """Whether a mask has colours, by its first bytes; False for what is no image."""
    try:
        with without_pillows_limit(), Image.open(path) as image:
            return image.mode in ("RGB", "RGBA", "RGBX") or _colours_of(image) is not None
    except DECODE_ERRORS:
        return False


def _check_alpha(values: np.ndarray, alpha: np.ndarray, path: str | Path) -> None:
    """Each value has one transparency; else it is the transparency that tells pixels apart. (H, W) both."""
    if alpha.min(initial=255) == 255:
        return
    pairs = np.unique(np.stack([values.ravel(), alpha.ravel()]).astype(np.int64), axis=1)
    if len(np.unique(pairs[0])) < pairs.shape[1]:
        raise BadMask(
            f"{path} has pixels of one colour and different transparency, so it is not certain which of the two is "
            "the class: save it without transparency"
        )


def as_grey(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Values as a file has them -> (H, W). Raises BadMask for colours."""
    if values.ndim == 2:
        return values
    if (values != values[:, :, :1]).any():
        raise BadMask(f"{path} is in colour: give a classes_file with the colour of each class")
    return values[:, :, 0]


def binary_numbers(file: MaskFile) -> np.ndarray:
    """(H, W) uint8 of 0 and 1; of a file of 0 and 1 these, unless its format changes values."""
    values = file.values.max(2) if file.values.ndim == 3 else file.values
    least = 1 if values.max(initial=0) <= 1 and not file.lossy else 128
    return (values >= least).astype(np.uint8)


def codes_of(colours: np.ndarray) -> np.ndarray:
    """(..., 3) bytes -> (...) one number a colour."""
    red, green, blue = np.moveaxis(colours.astype(np.int32), -1, 0)
    return (red << 16) | (green << 8) | blue
