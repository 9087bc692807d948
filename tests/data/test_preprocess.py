import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms import v2

from longvision.data.transforms.preprocess import Cover, Preprocess

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
    torch.testing.assert_close(Preprocess((224, 224)).transform()(image), usual(image), rtol=0, atol=0)


def test_whole_square_is_a_plain_resize():
    image = noise(50, 50)
    expected = v2.functional.pil_to_tensor(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    torch.testing.assert_close(Preprocess((32, 32), crop=1.0, **PLAIN).transform()(image), expected)


@pytest.mark.parametrize("width, height", [(64, 128), (128, 64), (100, 100), (40, 1200), (1200, 40)])
def test_height_comes_first_and_proportions_stay(width, height):
    """A white disc in the middle stays a disc, whatever the image's and the target's proportions."""
    y, x = np.mgrid[:height, :width]
    radius = min(width, height) * 0.2
    disc = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 < radius**2
    image = Image.fromarray((disc * 255).astype(np.uint8))
    result = Preprocess((60, 90), channels=1, crop=1.0, mean=(0.0,), std=(1.0,)).transform()(image)
    assert result.shape == (1, 60, 90)
    seen = result[0] > 0.5
    tall, wide = seen.any(1).sum().item(), seen.any(0).sum().item()
    assert tall == pytest.approx(wide, rel=0.2)


def test_values_are_normalised_float32():
    preprocess = Preprocess((4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    result = preprocess.transform()(Image.new("RGB", (8, 8), (255, 255, 255)))
    assert result.dtype == torch.float32
    assert type(result) is torch.Tensor
    assert result[:, 0, 0].tolist() == [1.0, 3.0, 1.0]


def test_any_mode_becomes_the_models_channels():
    grey = Preprocess((8, 8), channels=1).transform()(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    assert grey.shape == (1, 8, 8)
    assert grey[0, 0, 0].item() == pytest.approx((1 - 0.449) / 0.226, abs=1e-4)  # transparent is white


@pytest.mark.parametrize("width, height", [(64, 128), (128, 64), (100, 100), (40, 1200), (1200, 40)])
def test_no_border_is_added(width, height):
    preprocess = Preprocess((60, 90), **PLAIN)
    assert preprocess.transform()(Image.new("RGB", (width, height), "white")).min() == 1


def test_the_far_ends_of_a_strip_are_cut_first():
    cover = Cover(256, 256, v2.InterpolationMode.BICUBIC)
    assert cover(Image.new("L", (1, 2000))).size == (256, 2048)
    assert cover(Image.new("L", (2000, 1))).size == (2048, 256)


def test_the_transform_travels_to_workers():
    transform = Preprocess((192, 256), channels=1, crop=0.9, interpolation="bilinear").transform()
    image = noise(300, 300)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


def dense():
    pytest.importorskip("lightning")
    from longvision.data.dense import DensePreprocess

    return DensePreprocess


@pytest.fixture(params=[lambda: Preprocess, dense], ids=["Preprocess", "DensePreprocess"])
def kind(request):
    return request.param()


def test_round_trip_through_json(kind):
    own = {"crop": 0.9, "interpolation": "bilinear"} if kind is Preprocess else {"resize": "short"}
    preprocess = kind((192, 256), channels=1, mean=(0.25,), std=(0.5,), **own)
    again = kind.from_dict(json.loads(json.dumps(asdict(preprocess))))
    assert again == preprocess
    assert hash(again) == hash(preprocess)


def test_defaults_are_imagenets(kind):
    assert kind((8, 8)).mean == IMAGENET_DEFAULT_MEAN
    assert kind((8, 8)).std == IMAGENET_DEFAULT_STD
    assert kind((8, 8), channels=1).mean == pytest.approx((sum(IMAGENET_DEFAULT_MEAN) / 3,))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"size": (0, 8)}, r"size \(0, 8\): expected"),
        ({"size": (8,)}, "expected \\(height, width\\)"),
        ({"size": (8, 8), "channels": 2}, "channels 2"),
        ({"size": (8, 8), "mean": (0.5,)}, "mean has 1 values"),
        ({"size": (8, 8), "std": (0.0, 1.0, 1.0)}, "divided by"),
        ({"size": (8, 8), "colour": 1}, "has no colour"),
        ({"channels": 1}, "needs a size"),
    ],
)
def test_mistakes(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind.from_dict(values)


@pytest.mark.parametrize("values, message", [({"crop": 0.0}, "crop 0.0"), ({"interpolation": "cubic"}, "bicubic")])
def test_mistakes_in_what_is_cut(values, message):
    with pytest.raises(ValueError, match=message):
        Preprocess.from_dict({"size": (8, 8), **values})


def test_mistakes_in_what_is_resized():
    with pytest.raises(ValueError, match="resize 'x' is unknown: choose none, short, fit"):
        dense().from_dict({"size": (8, 8), "resize": "x"})
