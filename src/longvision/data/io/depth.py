"""What a file's header says of its values: how deep they are, and what Pillow would keep of them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from longvision.data.io.decode_errors import DECODE_ERRORS
from longvision.data.io.limits import without_pillows_limit
from longvision.data.io.tiff import ALIEN, MAGIC, tiff_facts
from longvision.data.problems import listing

PNG, PPM = b"\x89PNG\r\n\x1a\n", (b"P3", b"P6")
BITS, SAMPLES, FORMAT = 258, 277, 339  # tags of TIFF
JPEG_2000, AV1, SGI = b"\xff\x4f\xff\x51", b"av1C", b"\x01\xda"  # what stands before the depth
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow's images


@dataclass(frozen=True)
class Facts:
    """What a file says of itself.

    Args:
        deep: whether its values are anything but bytes.
        bits: how many it says that integers use; 0 where it does not.
        other_pages: whether there are pages that are not read.
        profile: whether its colours are those of a profile other than sRGB.
    """

    deep: bool
    bits: int = 0
    other_pages: bool = False
    profile: bool = False


def has_other_pages(path: str | Path, channels: int) -> bool:
    """Whether a file that was read has pages that were not."""
    try:
        with open(path, "rb") as file:
            facts = facts_of(file, channels)
    except OSError:
        return False
    return facts is not None and facts.other_pages


def pages_note(files: Sequence[str], total: int) -> str:
    return f"{len(files)} of {total} files have several pages ({listing(files)}): the first is used"


def facts_of(file: IO[bytes], channels: int) -> Facts | None:
    """Of an open file that is read in so many channels; None for what does not begin as an image."""
    deep = is_deep(file)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    try:
        if start == ALIEN:
            raise UnidentifiedImageError
        with without_pillows_limit(), Image.open(file) as image:
            profile = image.info.get("icc_profile") or b""
            other = bool(profile) and b"sRGB" not in profile
            if start not in MAGIC:
                pages = bool(getattr(image, "is_animated", False)) or getattr(image, "n_frames", 1) > 1
                return Facts(deep or image.mode in DEEP_MODES, _significant_bits(file), pages, other)
    except DECODE_ERRORS:
        if start not in MAGIC:
            return None
        other = False
    try:
        file.seek(0)
        tiff = tiff_facts(file, channels)
    except (ImportError, *DECODE_ERRORS):
        return Facts(deep, profile=other)
    return Facts(tiff.deep, tiff.bits, tiff.other_pages, other)


def _significant_bits(file: IO[bytes]) -> int:
    """What the chunk sBIT of a PNG says, which stands before its pixels; else 0."""
    file.seek(0)
    if file.read(8) != PNG:
        return 0
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"sBIT":
            return max(file.read(min(length, 4)), default=0)
        file.seek(length + 4, 1)
    return 0


def is_deep(file: IO[bytes]) -> bool:
    """By its header: more than 8 bits in several channels, of which Pillow keeps the upper 8; of TIFF also what Pillow
    does not know, or of which it would read the first channel alone."""
    start = file.read(26)
    file.seek(0)
    if start[:8] == PNG:
        return start[24:25] == b"\x10" and start[25:26] in (b"\2", b"\4", b"\6")
    if start[:4] not in MAGIC and start[:2] not in PPM:
        return False
    if start[:4] == ALIEN:
        return True
    try:
        with without_pillows_limit(), Image.open(file) as image:
            if start[:2] in PPM:
                return place_and_white(image)[1] > 255
            tags = getattr(image, "tag_v2", {})
    except DECODE_ERRORS:
        return start[:4] in MAGIC
    bits, formats = np.ravel(tags.get(BITS, 1)), np.ravel(tags.get(FORMAT, 1))
    if bits.max() == 12 and image.mode.startswith("I;16"):  # two in three bytes, which tifffile cannot take apart
        return False
    return bool(bits.max() > 8 or (formats != 1).any() or tags.get(SAMPLES, 1) > 4)


def tell_lost_bits(content: bytes, image: Image.Image) -> None:
    """Of an opened file of a format with more bits than Pillow keeps. Once: Python leaves out what it has said."""
    bits = 8
    if image.format == "JPEG2000" and image.mode in ("LA", "RGB", "RGBA", "YCbCr"):
        at = content.find(JPEG_2000)
        bits = 1 + (content[at + 42] & 127) if 0 <= at < len(content) - 42 else 8
    elif image.format == "AVIF":
        at = content.find(AV1)
        flags = content[at + 6] if 0 <= at < len(content) - 6 else 0
        bits = 12 if flags & 32 else 10 if flags & 64 else 8
    elif image.format == "SGI":
        bits = 8 * content[3]
    if bits > 8:
        warnings.warn(
            f"of {image.format} images with {bits} bits a value the upper 8 are read: to keep all, save them as PNG or "
            "TIFF of 16 bits",
            stacklevel=2,
        )


def place_and_white(image: Image.Image) -> tuple[int, int]:
    """Where the values of an opened PPM begin, and the one that is white."""
    _, _, offset, args = image.tile[0]  # type: ignore[attr-defined]
    return offset, args[1] if isinstance(args, tuple) else 255
