"""More than 8 bits, signed numbers, floats, many channels: every value arrives, on one scale for the whole set."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tifffile")

import tifffile
from torchvision.transforms.v2 import functional as F

from longvision.data.augment import Augment, DenseAugment, DetectionAugment
from longvision.data.config import FolderData, MaskFolderData
from longvision.data.io.deep import DeepImage
from longvision.data.io.headers import read_header
from longvision.data.io.images import is_image, read_image
from longvision.data.sources.objects import as_target
from longvision.data.transforms.detection import DetectionTransforms
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UnreadableImage, UserError

RAMP = np.linspace(0, 1, 64 * 48).reshape(64, 48)


def png16(values_HWC):
    height, width, samples = values_HWC.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[samples]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [
        struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def by_pillow(values, kind):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def tiff(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def many(dtype, bands=5):
    values = np.random.default_rng(0).normal(0, 100, (64, 48, bands))
    return np.abs(values).astype(dtype) if np.issubdtype(dtype, np.unsignedinteger) else values.astype(dtype)


U12, U16 = (RAMP * 4095).astype(np.uint16), (RAMP * 65535).astype(np.uint16)
I16 = (RAMP * 4000 - 1000).astype(np.int16)
RGB16 = np.stack([U16, U16[::-1], U12], 2)
FLOATS = (RAMP * 450 - 50).astype(np.float32)
FILES = {  # name: content, channels, values
    "png-12-bits-plantcv-1804": (by_pillow(U12, "PNG"), 1, U12),
    "png-16-bits": (by_pillow(U16, "PNG"), 1, U16),
    "pgm-16-bits": (by_pillow(U16, "PPM"), 1, U16),
    "pgm-of-1023": (b"P5 2 1 1023 " + struct.pack(">HH", 1023, 0), 1, np.array([[65535, 0]])),  # of 1023
    "png-16-bits-in-colour": (png16(RGB16), 3, RGB16),
    "png-16-bits-opaque": (png16(np.dstack([RGB16, np.full_like(U16, 65535)])), 3, RGB16),
    "tiff-12-in-16-bits": (tiff(U12), 1, U12),
    "tiff-big-endian": (tiff(U12, byteorder=">"), 1, U12),
    "tiff-lzw-and-differences": (by_pillow(U12, "TIFF"), 1, U12),
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


@pytest.mark.parametrize(
    "values, range, ends",
    [
        (U12, (0, 4095), (0, 1)),
        (U12, "dtype", (0, 4095 / 65535)),
        (U12, None, (0, 4095 / 65535)),
        (U12, (1000, 2000), (0, 1)),
        (I16, (-1000, 3000), (0, 1)),
        (I16, "image", (0, 1)),
        ((RAMP * 0.9).astype(np.float32), None, (0, 0.9)),
        ((RAMP * 0.9).astype(np.float32), (0, 255), (0, 0.9 / 255)),
        (np.full((4, 4), 7.0), "image", (0, 0)),
    ],
    ids=str,
)
def test_scaling(values, range, ends):
    scaled = DeepImage(values[:, :, None]).scaled(InputSpec((8, 8), range=range).range).values_HWC
    assert scaled.dtype == np.float32 and np.allclose((scaled.min(), scaled.max()), ends, atol=1e-6)
    if range == (0, 4095):
        assert len(np.unique(scaled)) == len(np.unique(U12))  # as many grey levels as there were


def test_what_is_no_number_is_an_end():
    values = np.array([[np.nan, np.inf, -np.inf, 5.0]])[:, :, None]
    assert DeepImage(values).scaled((0, 10)).values_HWC.ravel().tolist() == [0, 1, 0, 0.5]


def test_floats_that_nobody_explained_are_refused():
    with pytest.raises(UnreadableImage, match=r"a\.tif holds floats from -50 to 400.*data\.range"):
        InputSpec((8, 8), 1).evaluated(read_image(tiff(FLOATS), 1, "a.tif"))


@pytest.mark.parametrize("range", [(1, 1), (2, 1), (0, float("nan")), (0,), "auto", 5, (0, 1, 2)], ids=str)
def test_ranges_that_cannot_be(range):
    with pytest.raises(UserError, match="range"):
        InputSpec((8, 8), range=range)


def folder(tmp_path, values, channels=1, **options):
    """Two classes of four images, each in training and validation."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(4):
                (tmp_path / split / name / f"{n}.tif").write_bytes(tiff(values, **options))
    return FolderData(path=str(tmp_path), channels=channels, size=16, workers=0, batch_size=4)


@pytest.mark.parametrize(
    "values, range",
    [
        (U12, (0, 4095)),
        ((RAMP * 700).astype(np.uint16), (0, 1023)),
        ((RAMP * 200).astype(np.uint16), (0, 255)),  # 8 bits in 16
        ((RAMP * 9000).astype(np.uint16), (0, 16383)),
        (U16, (0, 65535)),
        (I16, (-1000, 3000)),
        ((RAMP * 0.5).astype(np.float32), (0, 1)),
        (FLOATS, (-50, 400)),
        ((RAMP * 100_000).astype(np.uint32), (0, 131071)),
        ((RAMP * 255).astype(np.uint8), None),
    ],
    ids=lambda value: str(value if isinstance(value, tuple | None) else value.dtype),
)
def test_the_range_is_looked_at_over_the_set_and_told(tmp_path, values, range):
    data = folder(tmp_path, values).build()
    data.setup("fit")
    assert data.input.range == range == data.measured["range"]
    told = [note for note in data.source.notes if "black to white" in note]
    assert len(told) == (range is not None) and (not told or f"{range[0]} to {range[1]}" in told[0])
    image, label = data.images("train")[0]
    x_CHW = data.transforms.evaluate(image, label)[0]
    assert (
        InputSpec.from_dict({"size": (16, 16), "channels": 1, "crop": 0.875, "range": range})
        .evaluated(image)
        .equal(x_CHW)
    )


def test_outliers_and_numbers_that_are_none_are_named(tmp_path):
    values = (RAMP * 300).astype(np.float32)
    values[0, :3] = 60000, np.nan, np.inf
    data = folder(tmp_path, values).build()
    data.setup("fit")
    notes = "\n".join(data.source.notes)
    assert "99.8 % of the values" in notes and "16 values of 8 images are no number" in notes and "0.tif" in notes


def test_pages_and_other_depths_are_told(tmp_path):
    config = folder(tmp_path, U12)
    (tmp_path / "train/a/stack.tif").write_bytes(tiff(np.stack([U12, U12])))
    Image.fromarray((RAMP * 255).astype(np.uint8)).save(tmp_path / "train/a/flat.png")
    data = config.build()
    data.setup("fit")
    notes = "\n".join(data.source.notes)
    assert "1 of 10 files have several pages (stack.tif): the first is used" in notes
    assert "the other 1 have 8 bits" in notes


AUGMENT = Augment(crop_scale=(0.5, 1.0), rotate=10.0, shift=0.1, zoom=0.1)


def test_five_channels_of_floats_are_measured_and_varied(tmp_path):
    config = folder(tmp_path, many(np.float32), 5, planarconfig="contig")
    data = config.build()
    data.augment = AUGMENT
    data.setup("fit")
    assert len(data.input.mean) == len(data.input.std) == 5 and "mean" in data.measured
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 5, 16, 16) and images.dtype == torch.float32
    shown, seen, _ = data.sample("val", 0)
    assert shown.mode == "RGB" and seen.shape == (5, 16, 16) and abs(float(seen.mean())) < 0.5


def test_deep_images_with_masks_keep_their_levels(tmp_path):
    for n in range(4):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / f"images/{n}.tif").write_bytes(tiff(U12))
        Image.fromarray((RAMP > 0.5).astype(np.uint8)).save(tmp_path / f"masks/{n}.png")
    augment = DenseAugment(scale=(1.0, 1.0), photometric=0.0, flip=0.0, most=1.0)
    data = MaskFolderData(path=str(tmp_path), channels=1, size=(64, 48), workers=0, augment=augment).build()
    data.setup("fit")
    image, label = data.images("train")[0]
    seen, mask = data.transforms.train(image, label, data.images("train"))
    assert len(seen.unique()) == len(np.unique(U12)) and torch.equal(mask, torch.from_numpy(label).long())


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_objects_on_deep_images(channels):
    spec = InputSpec((32, 32), channels, *([(0.5,) * channels, (0.2,) * channels]), resize="fit", range=(0, 100))
    image = DeepImage(np.abs(many(np.float32, channels)))
    target = as_target(1, [[4, 4, 40, 40]], [0], None, np.ones((1, 64, 48), bool))
    transforms = DetectionTransforms(DetectionAugment((0.5, 1.5), 0.5), spec)
    for _ in range(5):
        seen, _ = transforms.train(image, target, None)
        assert seen.shape == (channels, 32, 32) and -2.6 < float(seen.min()) <= float(seen.max()) < 2.6


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_eight_bits_are_read_as_before(mode, kind):
    """By Pillow, to the byte, and scaled by torchvision's 255."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    read = read_image(buffer.getvalue(), 3)
    with Image.open(buffer) as opened:
        expected = opened.convert("RGBA") if mode in ("RGBA", "LA") else opened.convert("RGB")
        if expected.mode == "RGBA":
            expected = Image.alpha_composite(Image.new("RGBA", expected.size, "white"), expected).convert("RGB")
    assert read.mode == "RGB" and np.array_equal(np.asarray(read), np.asarray(expected))
    x_CHW = InputSpec((9, 7), mean=(0, 0, 0), std=(1, 1, 1), resize="none", range=(0, 4095)).evaluated(read)
    assert torch.equal(x_CHW, F.to_dtype(F.pil_to_tensor(expected), torch.float32, scale=True))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_colours_are_colours(mode):
    buffer = io.BytesIO()
    red = Image.new("RGB", (16, 16), (200, 30, 30))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        red = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    else:
        red = red.convert(mode)
    red.save(buffer, "TIFF")
    assert np.abs(np.asarray(read_image(buffer.getvalue(), 3)).astype(int) - (200, 30, 30)).max() < 4
