"""What is known of a model's image sizes from its name alone, held to what the model does."""

from types import SimpleNamespace

import pytest
import timm
import torch

from longvision.errors import UserError
from longvision_cli.model_names import check_size, size_notes


def notes(name, size, sizes=(), task="classification"):
    data = SimpleNamespace(input=lambda: SimpleNamespace(size=size), sizes=sizes)
    return size_notes(SimpleNamespace(task=task, model=SimpleNamespace(name=name), data=data))


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (200, 216)])
def test_sizes_that_efficientvit_takes(size):
    check_size("efficientvit_m0", {}, size)
    model = timm.create_model("efficientvit_m0", img_size=size, num_classes=2).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 2)


def test_sizes_that_efficientvit_does_not_take():
    with pytest.raises(UserError, match=r"15x32.*at least 16"):
        check_size("efficientvit_m0.r224_in1k", {}, (15, 32))
    with pytest.raises(ZeroDivisionError):  # else nothing has to be refused
        timm.create_model("efficientvit_m0", img_size=(15, 32)).eval()(torch.randn(1, 3, 15, 32))


@pytest.mark.parametrize("size, even, by_stride", [
    ((200, 200), "26x26 14x14 8x8", "25x25 13x13 7x7"),
    ((216, 216), "28x28 14x14 8x8", "27x27 14x14 7x7"),
    ((225, 300), "30x38 16x20 8x10", "29x38 15x19 8x10"),
])  # fmt: skip
def test_the_maps_of_mobilevit_are_told(size, even, by_stride):
    """timm#1865."""
    words = f"of {size[0]}x{size[1]}, {even} for {by_stride};"
    for name, found in {"mobilevitv2_050": even, "mobilevit_xxs": by_stride}.items():
        assert words in notes(name, size)[0]
        model = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
        assert " ".join("x".join(map(str, m.shape[2:])) for m in model(torch.randn(1, 3, *size))) == found


def test_where_nothing_is_rounded_nothing_is_told():
    assert notes("mobilevitv2_100", (256, 320)) == notes("mobilevitv2_100", (63, 64)) == []
    assert notes("resnet18", (200, 200)) == notes("mobilevit_s", (200, 200), task="segmentation") == []


def test_all_sizes_are_told_in_one_line():
    (note,) = notes("mobilevitv2_100", (256, 256), sizes=(160, 192, 200))
    assert "160x160" in note and "200x200" in note and "192x192" not in note
