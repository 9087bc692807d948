"""Maps of EfficientViT and MobileViT v2 at the strides, and of the sizes, that dense heads ask for."""

import pytest
import timm
import torch

from longvision.models.backbone import backbone_of, create_features
from longvision.models.nested import NestedMaps
from longvision.models.pyramid import STRIDES

NAMES = ["efficientvit_m0", "mobilevitv2_050"]
every_name = pytest.mark.parametrize("name", NAMES)


@every_name
@pytest.mark.parametrize("height, width", [(8, 20), (33, 64), (96, 160)])
def test_maps_of_every_size(name, height, width):
    model = create_features(name, 3, (height, width)).eval()
    assert isinstance(model, NestedMaps) and model.feature_info.reduction() == list(STRIDES)
    maps = model(torch.randn(2, 3, height, width))
    for map_BCHW, channels, stride in zip(maps, model.feature_info.channels(), STRIDES, strict=True):
        assert map_BCHW.shape == (2, channels, -(-height // stride), -(-width // stride))


@every_name
@pytest.mark.parametrize("strides", [STRIDES, (32,)])
def test_every_parameter_learns(name, strides):
    """No stage is left out, and none is there in vain, which stops distributed training."""
    model = create_features(name, 3, (64, 128), strides=strides)
    sum(map_BCHW.square().sum() for map_BCHW in model(torch.randn(2, 3, 64, 128))).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    names = [key for key, _ in model.named_parameters()]
    assert any("stages_2." in key or "stages_4." in key for key in names)  # the last


def test_the_backbone_s_own_maps_are_among_them():
    """Where an image divides into cells of 64 pixels nothing is padded, and maps of its strides stay as they are."""
    model = create_features("efficientvit_m0", 3, (64, 128)).eval()
    plain = timm.create_model("efficientvit_m0", features_only=True, img_size=(64, 128)).eval()
    plain.load_state_dict(model.base.state_dict())
    x = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        maps, own = model(x), plain(x)
    torch.testing.assert_close(maps[2], own[0])
    torch.testing.assert_close(maps[3][:, :128], own[1])
    assert maps[3].shape[1] == 128 + 192 // 2  # beside it the map of stride 64, enlarged
    assert backbone_of(model) is model.base


def test_a_map_has_one_cell_for_each_stride():
    """timm#1865: a map of 7 cells is one of 8 in MobileViT v2; what is found in it would lie an eighth too far left."""
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        uneven = timm.create_model("mobilevitv2_050", features_only=True).eval()(x)
        even = create_features("mobilevitv2_050", 3, (224, 224)).eval()(x)
    assert [map_BCHW.shape[-1] for map_BCHW in uneven] == [112, 56, 28, 14, 8]
    assert [map_BCHW.shape[-1] for map_BCHW in even] == [56, 28, 14, 7]
