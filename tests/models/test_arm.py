"""ARM: the authors' code (golden files), grids of every shape, released files."""

import argparse

import pytest
import timm
import torch
import torch.nn.functional as F

from longvision.errors import UserError
from longvision.models import ARM
from longvision.models.backbone import create_features
from longvision.models.weights.files import load_weights
from support.golden import check_golden, golden, part, relative, released

GOLDEN = ["arm_pool_32", "arm_cls_32", "arm_pool_odd_24"]
TINY = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5}


def small(**options):
    return ARM(**{**TINY, **options}).double()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_code(name, shared, tmp_path, caplog):
    """From a file as theirs are: the average of the weights, which is published, beside the last step's."""
    caplog.set_level("INFO")
    tensors, metadata = golden(shared, name)
    config = metadata["config"]
    weights, path = part(tensors, "weights."), tmp_path / "released.pth"
    last = {key: torch.zeros_like(tensor) for key, tensor in weights.items()}
    torch.save({"model": last, "model_ema": weights, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, path)
    options = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_classes")}
    options |= {"pool": "mean" if config.get("global_pool") else "token", "pretrained_cfg_overlay": {"file": str(path)}}
    model = timm.create_model("arm_base_patch16_224", pretrained=True, **options)
    assert "model_ema is taken" in caplog.text
    seen = {}
    model.layers[0].register_forward_hook(lambda _, __, out: seen.update(out=out.detach()))
    check_golden(model, tensors)
    assert relative(seen["out"], tensors["act.layers.0"]) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("cls_token", ["middle", "none"])
def test_columns_of_a_grid_are_rows_of_its_transpose(cls_token):
    """For any grid: with the columns' parameters in the place of the rows', and the patches turned."""
    model, turned = (small(cls_token=cls_token, depth=1, img_size=size) for size in ((8, 12), (12, 8)))
    model.pos_embed.zero_()
    turned.load_state_dict(model.state_dict())
    turned.patch_embed.proj.weight.copy_(model.patch_embed.proj.weight.mT)
    given, taken = (directions_of(each.layers[0].mixer) for each in (model, turned))
    for there, here in (("", "_c"), ("_c", ""), ("_b", "_c_b"), ("_c_b", "_b")):
        for tensor, own in zip(taken[here].tensors(), given[there].tensors(), strict=True):
            tensor.copy_(own)
    image = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    one = model.forward_intermediates(image, indices=[0], intermediates_only=True)[0]
    two = turned.forward_intermediates(image.mT, indices=[0], intermediates_only=True)[0]
    torch.testing.assert_close(two.mT, one, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(turned(image.mT), model(image), rtol=1e-10, atol=1e-12)


def directions_of(mixer):
    """By the suffix of its parameters what each branch owns."""
    return {scan.suffix: mixer._branch(scan).scan_direction() for scan in mixer.scans}


@torch.no_grad()
def test_the_mean_is_that_of_two_halves():
    """Which the class token divides: of nine patches four and five. It is what the model has by itself."""
    model = small(img_size=(12, 12), pool=None)
    assert model.pool == "mean" and model.pools == ("mean", "token", "max", "none")
    x = torch.randn(1, 10, 16, dtype=torch.float64)
    expected = (x[:, :4].mean(1) + x[:, 5:].mean(1)) / 2
    torch.testing.assert_close(model.forward_head(x, pre_logits=True), expected)
    assert model(torch.randn(1, 3, 4, 4, dtype=torch.float64)).isfinite().all()  # one patch: no halves
    model.reset_classifier(5, "token")
    assert torch.equal(model.forward_head(x, pre_logits=True), x[:, 4])


def test_the_published_initialisation():
    """Steps of the first branch in [0.001, 0.1], of the others at softplus(0)."""
    for block in ARM(**{**TINY, "embed_dim": 64}).layers:
        step = F.softplus(block.mixer.dt_proj.bias)
        assert step.min() > 9e-4 and step.max() < 0.11
        others = [getattr(block.mixer, f"dt_proj{suffix}") for suffix in ("_b", "_c", "_c_b")]
        assert not any(layer.bias.any() for layer in (*others, block.mlp.w1, block.mlp.w2, block.mlp.w3))
        assert all(0.9 * 0.5 < layer.weight.abs().max() <= 0.5 for layer in others)  # of rank 4
        bound = 64**-0.5 / 2**0.5
        assert 0.9 * bound < block.mixer.out_proj.weight.abs().max() <= bound


def test_maps():
    model = create_features("arm_tiny_patch16_224", 3, (64, 96), args={"depth": 4, "embed_dim": 16})
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(map_BCHW.shape[2:]) for map_BCHW in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(map_BCHW.square().sum() for map_BCHW in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_file_of_another_variant_says_whose_it_is(tmp_path):
    released(tmp_path / "small.pth", "arm_small_patch16_224", 12, "model_ema")
    with torch.device("meta"):
        model = timm.create_model("arm_base_patch16_224", depth=1)
    with pytest.raises(UserError, match=r"small\.pth is .*another model: .*weights of arm_small_patch16_224$"):
        load_weights(model, tmp_path / "small.pth")


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"cls_token": "head"}, "cls_token='head'.*middle or none"),
        ({"cls_token": "none", "pool": "token"}, "pool='token'"),
        ({"state": 0}, "state 0"),
        ({"img_size": 18}, "18x18"),
    ],
    ids=str,
)
def test_what_raises(options, expected):
    with pytest.raises(UserError, match=expected):
        small(**options)
