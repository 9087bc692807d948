"""More than 8 bits, signed numbers, floats, many channels: on one scale for the whole set, and varied as they are."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tifffile")

from torchvision.transforms.v2 import functional as F

from longvision.data.augment import Augment, DenseAugment, DetectionAugment
from longvision.data.config import FolderData, MaskFolderData
from longvision.data.io import deep
from longvision.data.io.deep import DeepImage
from longvision.data.io.images import read_image
from longvision.data.io.ranges import look_at, mean_and_std, notes_of, notes_of_values, range_of, values_of
from longvision.data.sources.objects import as_target
from longvision.data.transforms.detection import DetectionTransforms
from longvision.data.transforms.input_spec import InputSpec, as_tensor
from longvision.errors import UnreadableImage, UserError
from support.deep import FLOATS, I16, RAMP, U12, U16, by_pillow, many, tiff, tiff_of_12_bits


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
    ids=lambda value: f"{value.dtype}" if isinstance(value, np.ndarray) else str(value),
)
@pytest.mark.filterwarnings("ignore:images of")
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


def test_a_run_that_saw_8_bits_tells_how_it_reads_more():
    with pytest.warns(UserWarning, match=r"uint16 values are read from 0 to 65535"):
        InputSpec((8, 8), 1).evaluated(read_image(tiff(U12), 1, "a.tif"))


@pytest.mark.parametrize(
    "values, words",
    [
        ((RAMP * 200).astype(np.int32), r"holds int32 from 0 to 200.*data\.range"),
        ((RAMP * 200).astype(np.uint32), "holds uint32 from 0 to 200"),
        (I16, "holds int16 from -1000 to 3000"),
    ],
    ids=lambda value: str(value.dtype) if isinstance(value, np.ndarray) else "",
)
def test_integers_that_nobody_explained_are_refused(values, words):
    with pytest.raises(UnreadableImage, match=words):
        InputSpec((8, 8), 1).evaluated(read_image(tiff(values), 1, "a.tif"))


@pytest.mark.parametrize(
    "values, range, words",
    [
        (U16, (0, 1), "uint16 values lie mostly beyond 0 to 1,"),
        (U16, (0, 4095), "uint16 values lie mostly beyond 0 to 4095"),
        (I16, (5000, 6000), "int16 values lie mostly beyond 5000 to 6000"),
        ((RAMP * 0.9).astype(np.float32), (0, 4095), "floats from 0 to 1 are read on 0 to 4095"),
    ],
    ids=["uint16-in-0-to-1", "16-bits-in-12", "all-below", "floats-in-12-bits"],
)
def test_images_of_another_depth_than_the_runs_are_told(values, range, words):
    with pytest.warns(UserWarning, match=words):
        InputSpec((8, 8), 1, range=range).evaluated(DeepImage(values[:, :, None]))


@pytest.mark.parametrize(
    "values, range",
    [(U12, (0, 4095)), (I16, (1500, 3000)), (FLOATS, (-50, 400)), (U12, (0, 65535)), (RAMP, (0, 1))],
    ids=["12-bits", "a-window-above-the-air", "floats", "12-in-16-bits", "0-to-1"],
)
def test_images_that_fit_the_range_are_not_told(values, range, recwarn):
    InputSpec((8, 8), 1, range=range).evaluated(DeepImage(values[:, :, None]))
    assert not [warning for warning in recwarn if "black to white" in str(warning.message)]


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
    assert "1 of 10 training images have 8 bits" in notes


@pytest.mark.parametrize(
    "values, channels, told",
    [
        (np.stack([U12] * 5), 5, False),
        (np.stack([U12] * 6), 5, True),
        (np.stack([U12] * 5), 1, True),
        (many(np.float32)[None].repeat(2, 0), 5, True),
        (many(np.float32), 5, False),
        ((np.stack([U12] * 2) >> 4).astype(np.uint8), 3, True),
    ],
    ids=["5-as-channels", "6-for-5", "5-for-grey", "2-of-5-channels", "5-channels", "2-of-bytes"],
)
def test_pages_that_are_not_read_are_told(values, channels, told):
    """Where pages become the channels, all are read."""
    photometric = "minisblack" if values.ndim == 3 and values.shape[-1] != 5 else None
    content = tiff(values, photometric=photometric, planarconfig="contig" if values.shape[-1] == 5 else None)
    (look,) = look_at([content], channels)
    assert look.facts.other_pages == told and bool(notes_of([look], None, "it")) == told


def png(values, significant):
    """With a chunk sBIT."""
    content = by_pillow(values, "PNG")
    chunk = b"sBIT" + bytes([significant])
    return content[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


DARK = (RAMP * 900).astype(np.uint16)


@pytest.mark.parametrize(
    "content, white",
    [
        (png(DARK, 12), 4095),
        (png(DARK << 4, 12), 65535),  # the upper bits, as PNG has it
        (png(DARK, 16), 65535),
        (by_pillow(DARK, "PNG"), 1023),
        (tiff(DARK, extratags=[(341, "H", 1, 4095, True)]), 4095),
        (tiff(DARK, extratags=[(281, "H", 1, 4095, True)]), 4095),
        (tiff(DARK, extratags=[(341, "H", 1, 900, True)]), 1023),  # its own highest value
        (tiff_of_12_bits(DARK), 4095),
    ],
    ids=["sbit", "sbit-upper", "sbit-16", "png", "smax", "max", "own-max", "12-bits"],
)
def test_bits_that_a_file_states_are_its_white(content, white):
    values = values_of(look_at([content], 1), 1)
    assert range_of(values) == (0, white)
    assert len(values) == 1 and (str(white) in notes_of_values(values, (0, white), "it")[0])


@pytest.mark.parametrize("kind", ["bytes", "deep-and-range-given"])
def test_no_image_is_decoded_where_headers_suffice(kind, tmp_path, monkeypatch):
    config = folder(tmp_path, (RAMP * 255).astype(np.uint8) if kind == "bytes" else U12)
    monkeypatch.setattr("longvision.data.io.ranges.read_image", None)
    data = (config if kind == "bytes" else replace(config, range=(0, 4095))).build()
    data.setup("fit")
    assert not data.source.notes and data.input.range == (None if kind == "bytes" else (0, 4095))


def test_a_range_without_effect_is_told(tmp_path):
    data = replace(folder(tmp_path, (RAMP * 255).astype(np.uint8)), range=(0, 4095)).build()
    data.setup("fit")
    (note,) = data.source.notes
    assert "data.range has no effect" in note and "8 training images" in note


@pytest.mark.parametrize("value", [0, 3.5])
def test_images_that_show_one_value_suggest_no_range(value):
    looks = look_at([tiff(np.full((8, 8), value, np.float32)), tiff(np.full((8, 8), value + 9, np.float32))][:1], 1)
    values = values_of(looks * 3, 1)
    assert "--data.range" not in " ".join(notes_of_values(values, range_of(values), "it"))


def test_many_channels_are_measured_from_few_pixels():
    values = many(np.float32, 224)
    (one,) = values_of(look_at([tiff(values, planarconfig="contig")], 224), 224)
    assert one.pixels.size <= 12_288 and len(one.pixels) > 50


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("box", [(0, 0, 48, 64), (3.3, 10.7, 20.1, 33.9), (40, 2, 48, 12.5)], ids=str)
def test_a_part_is_as_if_the_whole_had_been_computed(box, resampling):
    image = DeepImage(many(np.int16, 2)).scaled((-100, 250))
    whole = DeepImage(image.values_HWC)
    for size in ((7, 9), (60, 50)):
        expected = [Image.fromarray(whole.values_HWC[:, :, c]).resize(size, resampling, box) for c in (0, 1)]
        assert np.allclose(image.resize(size, resampling, box).values_HWC, np.dstack(expected), atol=1e-5)


def test_what_is_cut_away_is_not_computed(monkeypatch):
    seen = []
    monkeypatch.setattr(deep, "_from_0_to_1", lambda values, *ends: seen.append(values.size) or np.zeros(values.shape))
    image = DeepImage(np.zeros((400, 400, 1), np.uint16)).scaled((0, 4095))
    as_tensor(image.crop((10, 10, 20, 20)))
    image.resize((10, 10), Image.Resampling.BILINEAR, (100, 100, 110, 110))
    assert max(seen) < 500


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


def test_the_mean_is_of_all_columns():
    values = np.full((4096, 16, 5), 100, np.uint8)
    values[:, (0, -1)] = 0  # black borders: 14 of 16 columns are bright
    looks = look_at([tiff(values, planarconfig="contig", rowsperstrip=4096)], 5)
    mean, std = mean_and_std(values_of(looks, 5), None)
    assert np.allclose(mean, 14 / 16 * 100 / 255, atol=0.01)
    assert np.allclose(std, (14 * 2) ** 0.5 / 16 * 100 / 255, atol=0.01)


@pytest.mark.parametrize("channels", [2, 5])
def test_rand_augment_is_refused_of_other_channels(tmp_path, channels):
    augment = Augment(rand_augment="rand-m9-mstd0.5-inc1")
    with pytest.raises(UserError, match=rf"rand_augment.*takes {channels}.*rand_augment null"):
        replace(folder(tmp_path, many(np.uint8, channels), channels, planarconfig="contig"), augment=augment).build()


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
