"""The pyramid on isotropic backbones: its maps, released weights, and the libraries that take it."""

import pytest
import safetensors.torch
import timm
import torch

from longvision.errors import UserError
from longvision.models import register_pyramid
from longvision.models.backbone import backbone_of, create_backbone, create_features, dense_name
from longvision.models.pyramid import STRIDES, FeaturePyramid
from longvision.types import PackedImages

SIZE = 160, 224
NAMES = ["vim_tiny_patch16_224", "vim_tiny_patch16_stride8_224", "vim_nano_patch4_32", "deit_tiny_patch16_224"]
every_base = pytest.mark.parametrize("name", NAMES)
# Of each kind one: a Vim whose patches overlap, a transformer. That every one of ours fits a decoder, smp's tests hold.
two_bases = pytest.mark.parametrize("name", NAMES[1::2])


def make(name, **arguments):
    return timm.create_model(register_pyramid(name), depth=4, **arguments)


def test_register_pyramid():
    for tagged in ("vit_base_patch16_224.augreg_in21k", "vit_base_patch16_224.dino"):
        pyramid = register_pyramid(tagged)
        assert pyramid == tagged.replace(".", "_pyramid.") == register_pyramid(tagged)
        assert timm.get_pretrained_cfg(pyramid).hf_hub_id == timm.get_pretrained_cfg(tagged).hf_hub_id
    assert register_pyramid("vim_nano_patch4_32") == "vim_nano_patch4_32_pyramid"
    for other in ("resnet18", "vit_large_patch14_224", "no_such_model_patch16_224", "vim_nano_patch4_32_pyramid"):
        with pytest.raises(UserError, match=other):
            register_pyramid(other)


def test_dense_names():
    assert dense_name("deit_small_patch16_224.fb_in1k") == "deit_small_patch16_224_pyramid.fb_in1k"
    assert dense_name("deit_base_patch16_224_pyramid") == "deit_base_patch16_224_pyramid"  # as runs were told before
    assert dense_name("resnet18") == "resnet18"


@every_base
@pytest.mark.parametrize("height, width, blocks", [
    (*SIZE, "spread"), (150, 231, "last"), (150, 231, "spread"), (33, 64, "last"), (7, 5, "spread"),
])  # fmt: skip
def test_maps_of_every_size(name, height, width, blocks):
    model = make(name, features_only=True, blocks=blocks)
    maps = model(torch.randn(2, 3, height, width))
    assert model.feature_info.reduction() == list(STRIDES)
    for map_BCHW, channels, stride in zip(maps, model.feature_info.channels(), STRIDES, strict=True):
        assert map_BCHW.shape == (2, channels, -(-height // stride), -(-width // stride))


def test_a_stem_of_convolutions_has_patches_without_a_margin():
    """Its last convolution has half their side, at half the image's size."""
    pyramid = make("deepvit_s", embed_dim=16, num_heads=4, img_size=64, re_attention=1).eval()
    image = torch.randn(1, 3, *SIZE)
    maps = pyramid(image)
    assert pyramid.margin == (0, 0) and pyramid.base.num_prefix_tokens == 0
    assert [tuple(map_BCHW.shape[2:]) for map_BCHW in maps] == [(SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    torch.testing.assert_close(maps[2], pyramid.base.forward_intermediates(image, indices=1, norm=True)[1][0])


@every_base
def test_every_parameter_learns(name):
    for options in ({"blocks": "last"}, {"blocks": "spread"}, {"out_chans": 24}, {"out_indices": [2]}):
        model = make(name, features_only=True, **options)
        sum(map_BCHW.square().sum() for map_BCHW in model(torch.randn(1, 3, 64, 96))).backward()
        assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == [], options


def test_widths():
    assert make("vim_tiny_patch16_224", features_only=True).feature_info.channels() == [48, 96, 192, 192]
    assert make("vim_tiny_patch16_224", features_only=True, blocks="spread").feature_info.channels() == [192] * 4
    assert make("vim_tiny_patch16_224", features_only=True, out_chans=256).feature_info.channels() == [256] * 4


def test_blocks_6_12_18_and_24():
    assert timm.create_model("vim_tiny_patch16_224_pyramid", blocks="spread").taken == [5, 11, 17, 23]
    assert timm.create_model("vim_tiny_patch16_224_pyramid", blocks="last").taken == [23]


@every_base
def test_the_map_of_the_backbone_s_stride_is_its_last_normalised_map(name):
    model = make(name).eval()
    x = torch.randn(1, 3, 64, 96)
    alone = timm.create_model(name, depth=4, num_classes=0, **({} if "deit" in name else {"cls_token": "none"}),
                              **({"dynamic_img_size": True} if "deit" in name else {})).eval()  # fmt: skip
    alone.load_state_dict(model.base.state_dict(), strict=False)
    with torch.no_grad():
        if name == "vim_tiny_patch16_stride8_224":  # overlapping patches: four zeros around the image centre them
            x_padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
        else:
            x_padded = x
        (expected,) = alone.forward_intermediates(x_padded, indices=[3], norm=True, intermediates_only=True)
        level = STRIDES.index(model.stride)
        torch.testing.assert_close(model(x)[level], expected)


@pytest.mark.parametrize("name, stride", [("vim_tiny_patch16_224", 16), ("vim_tiny_patch16_stride8_224", 8)])
def test_a_cell_lies_where_its_pixels_are(name, stride):
    """A bright patch moves with the image: the patch embedding's response is centred on the cell."""
    model = make(name)
    proj = model.base.patch_embed.proj
    with torch.no_grad():
        proj.weight.fill_(1 / proj.weight[0].numel())
        proj.bias.zero_()
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 24:40, 24:40] = 1  # symmetric about the middle
    seen = {}
    proj.register_forward_hook(lambda module, inputs, output: seen.update(map=output))
    model(x)
    map_HW = seen["map"][0, 0]
    assert map_HW.shape == (64 // stride, 64 // stride)
    torch.testing.assert_close(map_HW, map_HW.flip(0))
    torch.testing.assert_close(map_HW, map_HW.flip(1))


def test_released_weights_load_without_their_class_token(tmp_path):
    """The file of a classifier, class token and head and all; its positions without the row in the middle."""
    torch.manual_seed(1)
    released = timm.create_model("vim_tiny_patch16_224", depth=4)
    path = str(tmp_path / "vim.pth")
    torch.save({"model": released.state_dict()}, path)
    model = make("vim_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": path})
    assert not hasattr(model.base, "cls_token") and model.base.pos_embed.shape[1] == 196
    middle = 98
    expected = torch.cat([released.pos_embed[:, :middle], released.pos_embed[:, middle + 1 :]], dim=1)
    torch.testing.assert_close(model.base.pos_embed, expected)
    for key, value in released.state_dict().items():
        if not key.startswith(("head.", "cls_token", "pos_embed")):
            torch.testing.assert_close(model.base.state_dict()[key], value, msg=key)


def test_weights_of_a_plain_transformer_load(tmp_path):
    torch.manual_seed(1)
    released = timm.create_model("deit_tiny_patch16_224", depth=4)
    path = str(tmp_path / "deit.safetensors")
    safetensors.torch.save_file(released.state_dict(), path)
    model = create_features("deit_tiny_patch16_224", 3, (96, 128), pretrained=path, args={"depth": 4}).model.base
    torch.testing.assert_close(model.blocks[3].mlp.fc1.weight, released.blocks[3].mlp.fc1.weight)
    torch.testing.assert_close(model.cls_token, released.cls_token)  # learned with the rest: it stays


def test_what_it_refuses():
    with pytest.raises(UserError, match="choose last or spread"):
        make("vim_nano_patch4_32", blocks="first")
    with pytest.raises(UserError, match="needs 4 blocks, the backbone has 2"):
        timm.create_model("vim_nano_patch4_32_pyramid", depth=2, blocks="spread")
    with pytest.raises(UserError, match="a pyramid itself"):
        FeaturePyramid(timm.create_model("resnet10t"))
    with pytest.raises(UserError, match="out_chans 0"):
        make("vim_nano_patch4_32", out_chans=0)


@torch.no_grad()
@pytest.mark.parametrize("blocks", ["last", "spread"])
def test_forward_intermediates(blocks):
    model, x = make("vim_nano_patch4_32", blocks=blocks).eval(), torch.randn(1, 3, 32, 64)
    ran = []
    for i, block in enumerate(model.base.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    maps = model(x)
    final, two = model.forward_intermediates(x, indices=[0, 1])
    assert torch.equal(final, maps[1]) and all(torch.equal(a, b) for a, b in zip(two, maps[:2], strict=True))
    ran.clear()
    early = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert ran == ([0, 1] if blocks == "spread" else [0, 1, 2, 3])
    assert all(torch.equal(a, b) for a, b in zip(early, maps[:2], strict=True))
    for refused in ({"norm": True}, {"output_fmt": "NLC"}):
        with pytest.raises(ValueError, match=next(iter(refused))):
            model.forward_intermediates(x, **refused)


def test_packed_images_are_refused():
    with pytest.raises(UserError, match="pyramid"):
        make("vim_nano_patch4_32")(PackedImages.from_images([torch.zeros(3, 32, 32)], 4))


def test_checkpointing_reaches_the_backbone():
    model = make("vim_nano_patch4_32", features_only=True)
    model.model.set_grad_checkpointing(True)
    assert model.model.base.grad_checkpointing


SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 2, 4, 8), "window_size": 4}


@pytest.mark.parametrize(
    "name", ["vim_nano_patch4_32", "deit_tiny_patch16_224", "resnet10t", "swin_tiny_patch4_window7_224"]
)
def test_create_features_and_the_backbone_inside(name):
    model = create_features(name, 1, (64, 64), args=SWIN if "swin" in name else None)
    assert model.feature_info.reduction() == list(STRIDES)
    maps = model(torch.randn(1, 1, 64, 64))
    assert [map_BCHW.shape[1:] for map_BCHW in maps] == [
        (channels, side, side) for channels, side in zip(model.feature_info.channels(), (16, 8, 4, 2), strict=True)
    ]
    backbone = backbone_of(torch.nn.Sequential(torch.nn.Linear(2, 2), model))
    assert hasattr(backbone, "group_matcher") == (name != "resnet10t")
    assert backbone is not model or name == "resnet10t"


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_positions_are_held_for_the_padded_image(name):
    model = create_features(name, 3, (96, 100), args={"depth": 1})
    assert model.model.base.pos_embed.shape[1] == 6 * 8 + (name == "deit_tiny_patch16_224")
    assert model(torch.randn(1, 3, 96, 100))[0].shape[2:] == (24, 25)


def test_a_pyramid_is_no_classifier():
    with pytest.raises(UserError, match="gives maps and no classes: choose vim_nano_patch4_32"):
        create_backbone("vim_nano_patch4_32_pyramid", 2, 3, (32, 32))


def test_create_features_names_what_is_missing():
    with pytest.raises(UserError, match="did you mean"):
        create_features("vim_tiny_patch16_225", 3, (64, 64))
    with pytest.raises(UserError, match="none of stride 64"):
        create_features("resnet10t", 3, (64, 64), strides=(4, 64))


# What others make of it, unchanged: a forward and a backward of each at 96 x 128.

SMALL = 96, 128


def check_backward(model, loss):
    loss.backward()
    assert loss.isfinite()
    without = [key for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name, decoder", [*((name, "FPN") for name in NAMES), (NAMES[1], "UPerNet")])
def test_segmentation_models_pytorch(name, decoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, decoder)(f"tu-{register_pyramid(name)}", encoder_weights=None, classes=5)
    logits = model(torch.randn(2, 3, *SMALL))
    assert logits.shape == (2, 5, *SMALL)
    check_backward(model, logits.square().mean())


def timm_backbone(name, out_indices):
    transformers = pytest.importorskip("transformers")
    return transformers.TimmBackboneConfig(
        backbone=register_pyramid(name), out_indices=out_indices, use_pretrained_backbone=False
    )


@pytest.mark.slow
@two_bases
def test_transformers_upernet(name):
    transformers = pytest.importorskip("transformers")
    config = transformers.UperNetConfig(
        backbone_config=timm_backbone(name, [0, 1, 2, 3]), hidden_size=32, num_labels=5, use_auxiliary_head=True,
        auxiliary_in_channels=make(name).feature_info[2]["num_chs"], auxiliary_channels=16,
    )  # fmt: skip
    model = transformers.UperNetForSemanticSegmentation(config)
    output = model(torch.randn(2, 3, *SMALL), labels=torch.randint(5, (2, *SMALL)))
    assert output.logits.shape == (2, 5, *SMALL)
    check_backward(model, output.loss)


@two_bases
def test_transformers_detr(name):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    config = transformers.DetrConfig(
        backbone_config=timm_backbone(name, [2]), use_pretrained_backbone=False, d_model=32, encoder_layers=1,
        decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        num_queries=6, num_labels=3,
    )  # fmt: skip
    model = transformers.DetrForObjectDetection(config)
    target = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])}
    output = model(torch.randn(2, 3, *SMALL), labels=[target, target])
    assert output.pred_boxes.shape == (2, 6, 4)
    check_backward(model, output.loss)


@two_bases
def test_torchvision_mask_rcnn(name):
    detection = pytest.importorskip("torchvision.models.detection")

    class Backbone(torch.nn.Module):
        out_channels = 32

        def __init__(self):
            super().__init__()
            self.body = timm.create_model(register_pyramid(name), features_only=True, out_chans=32, depth=4)

        def forward(self, x):
            return {str(i): map_BCHW for i, map_BCHW in enumerate(self.body(x))}

    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    names = ["0", "1", "2", "3"]
    model = detection.MaskRCNN(
        Backbone(), 3, min_size=SMALL[0], max_size=SMALL[1],
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2), mask_roi_pool=MultiScaleRoIAlign(names, 14, 2),
    )  # fmt: skip
    masks = torch.zeros(1, *SMALL, dtype=torch.uint8)
    masks[:, 20:70, 30:90] = 1
    target = {"boxes": torch.tensor([[30.0, 20, 90, 70]]), "labels": torch.tensor([1]), "masks": masks}
    losses = model([torch.rand(3, *SMALL)], [target])
    assert set(losses) >= {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    check_backward(model, sum(losses.values()))
