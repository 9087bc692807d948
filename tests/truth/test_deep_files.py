"""More than 8 bits, signed numbers, floats, many channels: every value of a file arrives."""

import io
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

pytest.importorskip("tifffile")

import tifffile

from longvision.data.io.deep import DeepImage
from longvision.data.io.depth import tell_lost_bits
from longvision.data.io.headers import read_header
from longvision.data.io.images import is_image, read_image
from longvision.data.io.masks import BadMask, read_mask
from longvision.data.io.ranges import look_at
from longvision.errors import UnreadableImage
from support.deep import FLOATS, I16, RAMP, RGB16, U12, U16, by_pillow, many, png16, ppm, tiff, tiff_of_12_bits

FILES = {  # name: content, channels, values
    "png-12-bits-plantcv-1804": (by_pillow(U12, "PNG"), 1, U12),
    "png-16-bits": (by_pillow(U16, "PNG"), 1, U16),
    "pgm-16-bits": (by_pillow(U16, "PPM"), 1, U16),
    "pgm-of-1023": (b"P5 2 1 1023 " + struct.pack(">HH", 1023, 0), 1, np.array([[65535, 0]])),  # of 1023
    "png-16-bits-in-colour": (png16(RGB16), 3, RGB16),
    "ppm-16-bits": (ppm(b"P6 48 64 65535 ", RGB16), 3, RGB16),
    "ppm-of-1023-and-comments": (
        b"P6\n# a\n2 1\n# b 4\n1023\n" + struct.pack(">6H", 1023, 0, 1, 512, 2, 3), 3,
        np.array([[[65535, 0, 64], [32800, 128, 192]]]),
    ),
    "ppm-in-words": (b"P3 2 1 65535\n1 2 # 9\n 3\n4 5 65535", 3, np.array([[[1, 2, 3], [4, 5, 65535]]])),
    "png-16-bits-opaque": (png16(np.dstack([RGB16, np.full_like(U16, 65535)])), 3, RGB16),
    "tiff-12-in-16-bits": (tiff(U12), 1, U12),
    "tiff-big-endian": (tiff(U12, byteorder=">"), 1, U12),
    "tiff-lzw-and-differences": (by_pillow(U12, "TIFF"), 1, U12),
    "tiff-lzw-in-strips": (by_pillow(U12, "TIFF", compression="tiff_lzw", strip_size=96 * 10), 1, U12),
    "tiff-deflate-in-strips": (tiff(U12, compression="zlib", rowsperstrip=10), 1, U12),
    "tiff-lzma-in-tiles": (tiff(U12, compression="lzma", tile=(32, 32)), 1, U12),
    "tiff-signed": (tiff(I16), 1, I16),
    "tiff-uint32": (tiff((RAMP * 1e9).astype(np.uint32)), 1, (RAMP * 1e9).astype(np.uint32)),
    "tiff-float32": (tiff(FLOATS), 1, FLOATS),
    "tiff-float64": (tiff(FLOATS.astype(float)), 1, FLOATS.astype(float)),
    "tiff-16-bits-in-colour": (tiff(RGB16, photometric="rgb"), 3, RGB16),
    "tiff-grey-in-three-channels": (tiff(U12), 3, np.repeat(U12[:, :, None], 3, 2)),
    **{
        f"tiff-5-bands-{np.dtype(dtype)}-{way}": (
            tiff(many(dtype).transpose(2, 0, 1) if "planar" in way else many(dtype), **options), 5, many(dtype)
        )
        for dtype in (np.float32, np.uint16, np.uint8)
        for way, options in {
            "interleaved": {"planarconfig": "contig"},
            "planar": {"planarconfig": "separate", "photometric": "minisblack"},
            "tiled-deflate": {"planarconfig": "contig", "tile": (32, 32), "compression": "zlib"},
            "big-strips": {"planarconfig": "contig", "bigtiff": True, "rowsperstrip": 7, "compression": "zlib"},
            "as-pages-planar": {},
            "as-rows": {},
        }.items()
    },
    "tiff-8-bands": (tiff(many(np.int16, 8), planarconfig="contig"), 8, many(np.int16, 8)),
    "rgba-as-4-channels": (by_pillow(np.dstack([RGB16, U12]).astype(np.uint8), "PNG"), 4,
                           np.dstack([RGB16, U12]).astype(np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_value_arrives(name):
    content, channels, values = FILES[name]
    read = read_image(content, channels, name)
    assert isinstance(read, DeepImage) and np.array_equal(np.asarray(read), values)
    assert (read.height, read.width) == values.shape[:2] and read.channels == channels


def predicted(values, dtype):
    """TIFF's floating-point predictor, as GDAL writes it, deflated: one strip, big-endian bytes apart."""
    height, width, bands = values.shape
    size = np.dtype(dtype).itemsize
    bytes_ = values.astype(np.dtype(dtype).newbyteorder(">")).view(np.uint8).reshape(height, width * bands, size)
    rows = bytes_.transpose(0, 2, 1).reshape(height, size * width, bands)
    steps = rows.copy()
    steps[:, 1:] = rows[:, 1:] - rows[:, :-1]
    return steps.tobytes()


@pytest.mark.parametrize("lzw", [False, True])
def test_the_floating_point_predictor(lzw):
    values = many(np.float32)
    steps = predicted(values, np.float32)
    if lzw:  # of one row of bytes, by Pillow
        buffer = io.BytesIO()
        Image.frombytes("L", (len(steps), 1), steps).save(buffer, "TIFF", compression="tiff_lzw")
        with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as file:
            page = file.pages[0]
            buffer.seek(page.dataoffsets[0])
            packed = buffer.read(page.databytecounts[0])
    else:
        packed = zlib.compress(steps)
    plain = bytearray(tiff(values, planarconfig="contig", rowsperstrip=64, predictor=False, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(plain))) as file:
        tags = {tag.code: tag for tag in file.pages[0].tags}
        offset, count, compression = (tags[code].valueoffset for code in (273, 279, 259))
        resolution = tags[282].offset  # becomes the tag of the predictor
        count_is_short = tags[279].dtype == 3
    plain[resolution : resolution + 12] = struct.pack("<HHII", 317, 3, 1, 3)
    plain[compression : compression + 2] = struct.pack("<H", 5 if lzw else 8)
    plain[offset : offset + 4] = struct.pack("<I", len(plain))
    if count_is_short:
        tag = tags[279].offset
        plain[tag : tag + 12] = struct.pack("<HHII", 279, 4, 1, len(packed))
    else:
        plain[count : count + 4] = struct.pack("<I", len(packed))
    read = read_image(bytes(plain) + packed, 5, "predicted.tif")
    assert np.array_equal(read.values_HWC, values)


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
def test_other_channels_than_the_file_has_are_refused(channels):
    with pytest.raises(UnreadableImage, match=rf"bands\.tif has 5 channels, expected {channels}"):
        read_image(tiff(many(np.float32), planarconfig="contig"), channels, "bands.tif")


def test_deep_transparency_is_refused_and_gaps_are_no_numbers():
    with pytest.raises(UnreadableImage, match="transparent"):
        read_image(png16(np.dstack([RGB16, U16])), 3)
    gaps = np.where(RAMP < 0.5, -9999, FLOATS).astype(np.float32)
    read = np.asarray(read_image(tiff(gaps, extratags=[(42113, "s", 0, "-9999", True)]), 1))
    assert np.array_equal(np.isnan(read), RAMP < 0.5)


def test_what_pillow_does_not_know_has_a_size(tmp_path):
    path = tmp_path / "bands.tif"
    path.write_bytes(tiff(many(np.float32), planarconfig="contig"))
    assert is_image(path) and read_header(path).size == (64, 48)


DEEP_MASKS = {
    "png-grey-and-alpha": png16(np.dstack([U12, np.full_like(U12, 65535)])),
    "png-colours": png16(RGB16),
    "png-colours-and-alpha": png16(np.dstack([RGB16, np.full_like(U12, 65535)])),
    "ppm-colours": ppm(b"P6 48 64 65535 ", RGB16),
    "tiff-colours": tiff(RGB16, photometric="rgb"),
    "tiff-colours-big-endian": tiff(RGB16, photometric="rgb", byteorder=">"),
}


@pytest.mark.parametrize("name", DEEP_MASKS)
def test_masks_of_which_pillow_keeps_the_upper_bytes_are_refused(tmp_path, name):
    path = tmp_path / "mask"
    path.write_bytes(DEEP_MASKS[name])
    with pytest.raises(BadMask, match="mask has several channels of 16 bits"):
        read_mask(path)


@pytest.mark.parametrize("content", [by_pillow(U12, "PNG"), tiff(U12), tiff(U12, byteorder=">")],
                         ids=["png", "tiff", "big-endian"])  # fmt: skip
def test_grey_masks_of_16_bits_keep_their_numbers(tmp_path, content):
    path = tmp_path / "mask"
    path.write_bytes(content)
    assert np.array_equal(read_mask(path).values, U12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_white_is_zero_at_every_depth(tmp_path, dtype):
    """Pillow turns 8 bits about, tifffile nothing."""
    tifffile = pytest.importorskip("tifffile")
    stored = np.array([[0, 1], [100, 200]], dtype)
    tifffile.imwrite(tmp_path / "a.tif", np.tile(stored, (4, 4)), photometric="miniswhite")
    values = np.asarray(read_image(tmp_path / "a.tif", 1))
    highest = np.iinfo(dtype).max
    assert values.reshape(8, 8)[0, :2].tolist() == [highest, highest - 1]


@pytest.mark.parametrize(("dtype", "words"), [(np.complex64, "complex"), (np.float32, "white")])
def test_what_is_no_brightness_is_refused(tmp_path, dtype, words):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((8, 8), dtype), photometric="miniswhite")
    with pytest.raises(UnreadableImage, match=words):
        read_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize(
    "content",
    [b"P6 2 1 1023 " + struct.pack(">6H", 1, 2, 3, 4, 5, 1024), b"P3 1 1 1023 1 2 -3", b"P6 2 1 1023 12345678901"],
    ids=["above-white", "below-black", "cut-off"],
)
def test_a_deep_ppm_that_is_not_as_it_says_is_refused(content):
    with pytest.raises(UnreadableImage, match=r"^a\.ppm cannot be read"):
        read_image(content, 3, "a.ppm")


@pytest.mark.parametrize(
    "kind, head, bits",
    [
        ("JPEG2000", b"\xff\x4f\xff\x51" + bytes(38) + b"\x0b\1\1", 12),
        ("JPEG2000", b"\xff\x4f\xff\x51" + bytes(38) + b"\x07\1\1", 8),
        ("JPEG2000", b"\xff\x4f\xff\x51", 8),
        ("AVIF", b"ftypavif av1C\x81\x00\x40\x00", 10),
        ("AVIF", b"ftypavif av1C\x81\x00\x60\x00", 12),
        ("AVIF", b"ftypavif av1C\x81\x00\x0c\x00", 8),
        ("SGI", b"\x01\xda\0\2", 16),
        ("SGI", b"\x01\xda\0\1", 8),
    ],
    ids=str,
)
def test_bits_that_pillow_drops_are_told(kind, head, bits, recwarn):
    """By what the header says: no encoder here writes such files."""
    tell_lost_bits(head, SimpleNamespace(format=kind, mode="RGB"))
    said = [str(one.message) for one in recwarn]
    assert len(said) == (bits > 8) and (not said or f"{kind} images with {bits} bits" in said[0])


@pytest.mark.parametrize("kind", ["JPEG2000", "AVIF", "SGI"])
def test_eight_bits_of_such_a_format_are_read_without_a_word(kind, recwarn):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, kind)
    assert read_image(buffer.getvalue()).size == (32, 32) and not len(recwarn)


def test_twelve_bits_two_in_three_bytes():
    assert np.array_equal(read_image(tiff_of_12_bits(U12), 1), U12)


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_a_small_file_never_unpacks_to_more_than_its_header_says(compression):
    """16 MB of zeros where it says 16x16: no more of it is unpacked than that. LZMA itself takes 8 MB."""
    content = tiff(np.zeros((4096, 2048), np.uint16), compression=compression, rowsperstrip=4096)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        sides = [file.pages[0].tags[tag].valueoffset for tag in (256, 257)]
    small = bytearray(content)
    for place in sides:
        small[place : place + 2] = struct.pack("<H", 16)
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=r"a\.tif .*unpacks to more"):
        read_image(bytes(small), 1, "a.tif")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


def test_a_tile_larger_than_images_may_be_is_refused():
    content = bytearray(tiff(U12, tile=(64, 64), compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
        sides = [file.pages[0].tags[tag].valueoffset for tag in (322, 323)]
    for place in sides:
        content[place : place + 2] = struct.pack("<H", 60000)
    with pytest.raises(UnreadableImage, match="60000x60000"):
        read_image(bytes(content), 1, "a.tif")


@pytest.mark.parametrize("compression", ["zlib", "lzma"])
def test_damaged_parts_are_refused(compression):
    content = bytearray(tiff(U12, compression=compression))
    content[-400:-300] = bytes(100)
    with pytest.raises(UnreadableImage, match=r"^a\.tif cannot be read"):
        read_image(bytes(content), 1, "a.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_healthy_big_endian_bigtiff_is_not_called_damaged(tmp_path, dtype, recwarn):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(np.zeros((16, 12, 3), dtype), bigtiff=True, byteorder=">", photometric="rgb"))
    assert is_image(path) and read_header(path).size == (16, 12)
    assert read_image(path).size == (12, 16) and not look_at([str(path)], 3)[0].facts.other_pages
    assert not [one for one in recwarn if "Corrupt" in str(one.message)]
