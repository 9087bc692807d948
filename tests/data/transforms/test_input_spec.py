import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import v2

from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UserError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("width, height", [(500, 375), (333, 500), (224, 224), (100, 60)])
def test_square_is_the_usual_evaluation(width, height):
    usual = v2.Compose(
        [
            v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )
    image = noise(width, height)
    torch.testing.assert_close(InputSpec((224, 224)).evaluated(image), usual(image), rtol=0, atol=0)


def test_whole_square_is_a_plain_resize():
    image = noise(50, 50)
    expected = v2.functional.pil_to_tensor(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    torch.testing.assert_close(InputSpec((32, 32), crop=1.0, **PLAIN).evaluated(image), expected)


@pytest.mark.parametrize("width, height", [(64, 128), (128, 64), (100, 100), (40, 1200), (1200, 40)])
def test_height_comes_first_and_proportions_stay(width, height):
    """A white disc in the middle stays a disc, whatever the image's and the target's proportions."""
    y, x = np.mgrid[:height, :width]
    radius = min(width, height) * 0.2
    disc = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 < radius**2
    image = Image.fromarray((disc * 255).astype(np.uint8))
    result = InputSpec((60, 90), channels=1, crop=1.0, mean=(0.0,), std=(1.0,)).evaluated(image)
    assert result.shape == (1, 60, 90)
    seen = result[0] > 0.5
    tall, wide = seen.any(1).sum().item(), seen.any(0).sum().item()
    assert tall == pytest.approx(wide, rel=0.2)


def test_values_are_normalised_float32():
    preprocess = InputSpec((4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    result = preprocess.evaluated(Image.new("RGB", (8, 8), (255, 255, 255)))
    assert result.dtype == torch.float32
    assert type(result) is torch.Tensor
    assert result[:, 0, 0].tolist() == [1.0, 3.0, 1.0]


def test_any_mode_becomes_the_models_channels():
    grey = InputSpec((8, 8), channels=1).evaluated(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    assert grey.shape == (1, 8, 8)
    assert grey[0, 0, 0].item() == pytest.approx((1 - 0.449) / 0.226, abs=1e-4)  # transparent is white


@pytest.mark.parametrize("width, height", [(64, 128), (128, 64), (100, 100), (40, 1200), (1200, 40)])
def test_no_border_is_added(width, height):
    preprocess = InputSpec((60, 90), **PLAIN)
    assert preprocess.evaluated(Image.new("RGB", (width, height), "white")).min() == 1


def test_the_far_ends_of_a_strip_are_cut_first(monkeypatch):
    """Or an image of one row would be resized to gigabytes before its centre is cut."""
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *more: sizes.append(size) or resize(self, size, *more)
    )
    for size in ((1, 2000), (2000, 1)):
        assert InputSpec((256, 256), 1, crop=1.0).evaluated(Image.new("L", size)).shape == (1, 256, 256)
    assert sizes == [(256, 2048), (2048, 256)]


def test_what_older_runs_stored_is_read():
    """Those of a classification have no resize, those of dense tasks neither crop nor interpolation."""
    shared = {"size": [8, 9], "channels": 1, "mean": [0.5], "std": [0.25]}
    old = InputSpec.from_dict({**shared, "crop": 0.9, "interpolation": "bilinear"})
    assert old == InputSpec((8, 9), 1, (0.5,), (0.25,), "crop", 0.9, "bilinear")
    dense = InputSpec.from_dict({**shared, "resize": "fit"})
    assert (dense.resize, dense.interpolation) == ("fit", "bilinear")


@pytest.mark.parametrize(
    "resize, size", [("none", (30, 50)), ("short", (48, 80)), ("fit", (48, 80)), ("crop", (60, 80))]
)
def test_how_an_evaluated_image_is_resized(resize, size):
    spec = InputSpec((60, 80) if resize in ("fit", "crop") else (48, 96), resize=resize)
    assert spec.evaluated(noise(50, 30)).shape == (3, *size)


@pytest.mark.parametrize("own", [{"crop": 0.9, "interpolation": "bilinear"}, {"resize": "short"}])
def test_round_trip_through_json(own):
    preprocess = InputSpec((192, 256), channels=1, mean=(0.25,), std=(0.5,), **own)
    again = InputSpec.from_dict(json.loads(json.dumps(asdict(preprocess))))
    assert again == preprocess
    assert hash(again) == hash(preprocess)


def test_defaults_are_imagenets():
    assert InputSpec((8, 8)).mean == IMAGENET_DEFAULT_MEAN
    assert InputSpec((8, 8)).std == IMAGENET_DEFAULT_STD
    assert InputSpec((8, 8), channels=1).mean == pytest.approx((sum(IMAGENET_DEFAULT_MEAN) / 3,))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": (0, 8)}, r"size \(0, 8\): expected"),
        ({"size": (8,)}, "expected \\(height, width\\)"),
        ({"size": (8, 8), "channels": 0}, "channels 0"),
        ({"size": (8, 8), "mean": (0.5,)}, "mean has 1 values"),
        ({"size": (8, 8), "std": (0.0, 1.0, 1.0)}, "divided by"),
        ({"size": (8, 8), "colour": 1}, "has no colour"),
        ({"channels": 1}, "needs a size"),
        (None, "needs a size"),
        ({"size": 8}, "size 8: expected"),
        ({"size": ["a", "b"]}, "expected a list of numbers"),
        ({"size": (8, 8), "mean": 0.5}, "mean 0.5: expected"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(UserError, match=message):
        InputSpec.from_dict(values)


@pytest.mark.parametrize("values, message", [({"crop": 0.0}, "crop 0.0"), ({"interpolation": "cubic"}, "bicubic")])
def test_mistakes_in_what_is_cut(values, message):
    with pytest.raises(UserError, match=message):
        InputSpec.from_dict({"size": (8, 8), **values})


def test_mistakes_in_what_is_resized():
    with pytest.raises(UserError, match="resize 'x' is unknown: choose crop, none, short, fit"):
        InputSpec.from_dict({"size": (8, 8), "resize": "x"})


@pytest.mark.parametrize(
    "width, height, tokens, size",
    [(100, 100, 20, (16, 16)), (40, 10, 12, (8, 24)), (10, 40, 12, (24, 8)), (500, 5, 12, (4, 48)), (7, 9, 1, (4, 4))],
)
def test_within_a_number_of_tokens(width, height, tokens, size):
    """Whole patches of 4 pixels, as many as there may be in the image's proportions."""
    spec = InputSpec((32, 32), crop=0.9).within(tokens, 4)
    assert spec.evaluated(noise(width, height)).shape == (3, *size)
    assert spec.most_patches == tokens and InputSpec.from_dict(json.loads(json.dumps(asdict(spec)))) == spec
    assert InputSpec((8, 12), resize="area", patch=4).most_patches == 6
    for wrong in (0, 2.5):
        with pytest.raises(UserError, match=f"tokens {wrong}"):
            spec.within(wrong, 4)
