"""How a segmentation is asked: windows, scales, mirroring, and pictures that were resized for it."""

import pytest
import torch

from longvision.inference.config import Asking


def model(images_BCHW):
    """The picture itself is the answer: its channels are the logits."""
    model.seen.append(tuple(images_BCHW.shape))
    return images_BCHW


@pytest.fixture(autouse=True)
def _fresh():
    model.seen = []


@pytest.mark.parametrize("asking", [Asking(), Asking(window=8), Asking(window=8, stride=3), Asking(flip=True)])
def test_every_way_gives_the_same_answer_of_a_model_without_context(asking):
    image = torch.randn(3, 13, 21)
    torch.testing.assert_close(asking.probabilities(model, image, 3, (13, 21)), image.softmax(0))


def test_windows_of_two_thirds():
    Asking(window=512).probabilities(model, torch.zeros(2, 512, 853), 2, (512, 853))
    assert sum(shape[0] for shape in model.seen) == 2  # 0 and 341
    assert {shape[2:] for shape in model.seen} == {(512, 512)}


def test_scales_and_mirrors_are_asked_for_each():
    Asking(scales=(0.5, 1.0, 2.0), flip=True).probabilities(model, torch.zeros(2, 8, 12), 2, (8, 12))
    assert [shape[2:] for shape in model.seen] == [(4, 6), (4, 6), (8, 12), (8, 12), (16, 24), (16, 24)]


def test_the_answer_has_the_picture_s_own_size():
    shares = Asking().probabilities(model, torch.randn(3, 8, 12), 3, (20, 31))
    assert shares.shape == (3, 20, 31)
    torch.testing.assert_close(shares.sum(0), torch.ones(20, 31))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"window": 0}, "window 0"),
        ({"window": 8, "stride": 9}, "stride 9: expected 1 to the window's side"),
        ({"stride": 4}, "stride 4 needs --model.asking.window"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
    ],
)
def test_what_it_refuses(values, said):
    with pytest.raises(ValueError, match=said):
        Asking(**values)
