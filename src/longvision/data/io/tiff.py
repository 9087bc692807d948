"""TIFF beyond what Pillow reads: any number type and any number of channels, tiled or in strips, BigTIFF."""

import io
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from longvision.data.io.decode_errors import DECODE_ERRORS
from longvision.data.io.limits import check_pixels, without_pillows_limit
from longvision.errors import UnreadableImage
from longvision.types import Size

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it has to say of damaged files, our errors say
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ALIEN = b"MM\0+"  # big-endian BigTIFF, which Pillow takes for a damaged file, and says so
LZW, DEFLATE, LZMA = 5, (8, 32946), 34925
MOST_OF_LZMA = 2**28  # bytes that it may take for itself
WHITE_IS_ZERO = 0  # the photometric interpretation of scanned documents
ORIENTATION, EXTRA_SAMPLES, NO_DATA = 274, 338, 42113
HIGHEST = (341, 281)  # the tags SMaxSampleValue and MaxSampleValue


def read_tiff(content: bytes, channels: int, name: str) -> tuple[np.ndarray, bool, int]:
    """Values (H, W, C) of the first image as they are stored, whether the last channel is alpha, and the orientation.

    Where the file is a series of `channels` pages of one channel each, other than 1 or 3, they are the channels. What
    GDAL calls "no data" is not a number. Raises UnreadableImage, and what a damaged file makes of tifffile.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableImage(f"{name} needs tifffile to be read: pip install 'longvision[train]'") from error
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        check_pixels(name, page.imagewidth, page.imagelength)
        if page.is_tiled:
            check_pixels(name, page.tilewidth, page.tilelength)
        if page.samplesperpixel > 4 and page.samplesperpixel != channels:
            raise UnreadableImage(
                f"{name} has {page.samplesperpixel} channels, expected {channels} (data.channels of a training)"
            )
        _check_kind(page, name)
        rows = _rows_as_pages(page, channels)
        if rows:  # an array (H, W, C) that its program took for H pages
            return _without_gaps(np.stack([_values(file.pages[row]) for row in range(rows)]), page), False, 1
        values_HWC = np.concatenate([_shaped(_values(one), one) for one in _channels_as_pages(file, channels)], 2)
        tags = {tag: page.tags[tag].value for tag in (ORIENTATION, EXTRA_SAMPLES) if tag in page.tags}
        has_alpha = bool(np.ravel(tags.get(EXTRA_SAMPLES, 0))[-1] in (1, 2)) and page.samplesperpixel in (2, 4)
        return _without_gaps(values_HWC, page), has_alpha, int(tags.get(ORIENTATION, 1))


def _check_kind(page: Any, name: str) -> None:
    """Raises UnreadableImage for values that are no brightness, or whose white is not certain."""
    if page.dtype is not None and page.dtype.kind == "c":
        raise UnreadableImage(
            f"{name} has complex values: write their magnitude, or real and imaginary part as channels"
        )
    if page.photometric == WHITE_IS_ZERO and (page.dtype is None or page.dtype.kind != "u"):
        raise UnreadableImage(f"{name} says that its lowest value is white, of {page.dtype} values: turn them about")


def first_bytes(path: str | Path) -> bytes:
    """Four."""
    with open(path, "rb") as file:
        return file.read(4)


def tiff_size(path: str | Path) -> tuple[Size, int] | None:
    """Height and width as they are stored, and the orientation, of a TIFF; None for what is none."""
    try:
        if first_bytes(path) not in MAGIC:
            return None
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            turn = page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1
            return (page.imagelength, page.imagewidth), turn if turn in range(1, 9) else 1
    except (ImportError, *DECODE_ERRORS):
        return None


@dataclass(frozen=True)
class TiffFacts:
    """What a TIFF says of itself.

    Args:
        deep: whether its values are anything but bytes.
        bits: how many it says that integers use; 0 where it does not.
        other_pages: whether there are pages that `read_tiff` leaves out.
    """

    deep: bool
    bits: int
    other_pages: bool


def tiff_facts(file: IO[bytes], channels: int) -> TiffFacts:
    """Raises ImportError without tifffile, and what a damaged file makes of it."""
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages[0]
        used = _rows_as_pages(page, channels) or len(_channels_as_pages(tiff, channels))
        try:
            others = tiff.pages[used] is not None
        except IndexError:
            others = False
        kind = "" if page.dtype is None else page.dtype.kind
        highest = [page.tags[tag].value for tag in HIGHEST if tag in page.tags]
        bits = page.bitspersample if page.bitspersample % 8 else 0  # 12, of which two share a byte
        bits = max((int(np.max(value)).bit_length() for value in highest), default=bits)
        return TiffFacts(kind != "u" or page.bitspersample > 8, bits if kind == "u" else 0, others)


def _rows_as_pages(page: Any, channels: int) -> int:
    """How many, where tifffile noted that the array it was given has `channels` at the end; else 0. Pages are never
    counted: in a damaged file their chain may have no end."""
    if channels in (1, 3) or page.shape[1:] != (channels,):
        return 0
    found = re.fullmatch(r'\{"shape": \[(\d+), (\d+), (\d+)\].*', page.description)
    return int(found[1]) if found and (int(found[2]), int(found[3])) == page.shape else 0


def _channels_as_pages(file: Any, channels: int) -> list[Any]:
    """The first `channels` pages, where there are as many of one channel and no more of the same size; else the
    first."""
    if channels in (1, 3) or file.pages[0].samplesperpixel > 1:
        return [file.pages[0]]
    pages: list[Any] = []
    for number in range(channels + 1):
        try:
            pages.append(file.pages[number])
        except IndexError:
            break
    alike = len(pages) == channels and all(one.shape == pages[0].shape for one in pages)
    return pages if alike else pages[:1]


def _shaped(values: np.ndarray, page: Any) -> np.ndarray:
    """(H, W, C) of what tifffile gives: (H, W), (H, W, C) or (C, H, W)."""
    size = (page.imagelength, page.imagewidth)
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3:
        raise ValueError(f"it has {values.ndim} dimensions, expected height, width and channels")
    return values if values.shape[:2] == size and page.planarconfig == 1 else values.transpose(1, 2, 0)


def _without_gaps(values: np.ndarray, page: Any) -> np.ndarray:
    if NO_DATA not in page.tags:
        return values
    try:
        gap = float(str(page.tags[NO_DATA].value).strip("\0 "))
    except ValueError:
        return values
    if np.isnan(gap) or not (values == gap).any():
        return values
    return np.where(values == gap, np.nan, values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64))


def _values(page: Any) -> np.ndarray:
    """As brightness: where the lowest value is white, turned about."""
    stored = _stored(page)
    if page.photometric != WHITE_IS_ZERO:
        return stored
    return np.subtract((1 << page.bitspersample) - 1, stored, dtype=stored.dtype)


def _stored(page: Any) -> np.ndarray:
    if page.compression in (LZW, LZMA, *DEFLATE):
        return _decoded_here(page)  # tifffile would ask for another package, or unpack without end
    try:
        return page.asarray()
    except (KeyError, ValueError) as error:
        if "imagecodecs" in str(error):
            raise ValueError(
                f"it is compressed by {page.compression.name}: pip install imagecodecs, or save it with deflate or LZW"
            ) from error
        raise


def _decoded_here(page: Any) -> np.ndarray:
    """(planes, H, W, samples), the first or last left out where it is 1."""
    if page.bitspersample != 8 * np.dtype(page.dtype).itemsize:
        raise ValueError(f"it has {page.bitspersample} bits a value and is compressed: save it with 8 or 16")
    planes, _, height, width, samples = page.shaped
    tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    wide = page.tilewidth if page.is_tiled else width
    down, across = -(-height // tall), -(-width // wide)
    canvas = np.zeros((planes, down * tall, across * wide, samples), page.dtype)
    for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        plane, place = divmod(number, down * across)
        top, left = (place // across) * tall, (place % across) * wide
        rows = tall if page.is_tiled else min(tall, height - top)
        page.parent.filehandle.seek(offset)
        row, packed = wide * samples * canvas.itemsize, page.parent.filehandle.read(count)
        if page.compression == LZW:
            content = _from_lzw(packed, rows * row)
        else:  # some programs fill up the last strip
            content = _unpacked(page.compression, packed, tall * row)
        part = _part(page, content, (rows, wide, samples))
        canvas[plane, top : top + rows, left : left + wide] = part
    values = canvas[:, :height, :width]
    return values[0] if planes == 1 else values[..., 0]


def _part(page: Any, content: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """A strip or tile (rows, columns, samples)."""
    dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    length = int(np.prod(shape)) * dtype.itemsize
    rows, columns, samples = shape
    if page.predictor == 3:  # differences of bytes, the highest bytes of a row first
        steps = np.frombuffer(content, np.uint8, length).reshape(rows, dtype.itemsize * columns, samples)
        bytes_ = np.add.accumulate(steps, 1, dtype=np.uint8).reshape(rows, dtype.itemsize, columns * samples)
        return bytes_.transpose(0, 2, 1).copy().view(dtype.newbyteorder(">")).reshape(shape)
    values = np.frombuffer(content, dtype, int(np.prod(shape))).reshape(shape)
    return np.add.accumulate(values, 1, dtype=page.dtype) if page.predictor == 2 else values


def _unpacked(compression: int, content: bytes, most: int) -> bytes:
    """Whatever a small file would become, never more than `most` and a byte: what ends before has its sum checked."""
    if compression in DEFLATE:
        unpacked = zlib.decompressobj().decompress(content, most + 1)
    else:
        import lzma

        try:
            unpacked = lzma.LZMADecompressor(memlimit=MOST_OF_LZMA).decompress(content, most + 1)
        except lzma.LZMAError as error:
            raise ValueError(str(error)) from error
    if len(unpacked) > most:
        raise ValueError("it unpacks to more than the size that it states")
    return unpacked


def _from_lzw(content: bytes, length: int) -> bytes:
    """Through Pillow's libtiff: the bytes as a grey image of one row."""
    tags = {256: length, 257: 1, 258: 8, 259: LZW, 262: 1, 273: 0, 277: 1, 278: 1, 279: len(content)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    with without_pillows_limit(), Image.open(io.BytesIO(head + content)) as image:
        return image.tobytes()
