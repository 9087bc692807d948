"""Mamba-Reg: the authors' code (golden files), where registers stand, packed images, released files."""

import argparse

import pytest
import timm
import torch

from longvision.errors import UserError
from longvision.layers import Registers
from longvision.models import MambaReg
from longvision.models.backbone import create_backbone, create_features
from longvision.models.weights.files import load_weights, save_weights
from longvision.models.weights.hub import UnreachableWeights
from longvision.types import PackedImages
from support.golden import check_golden, golden, part, relative, released

GOLDEN = ["mambareg_cls4_reduce2_32", "mambareg_cls3_reduce1_24x40", "mambareg_cls12_reduce4_32"]
TINY = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5, "registers": 4}


def small(**options):
    return MambaReg(**{**TINY, **options}).double()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_code(name, shared, tmp_path):
    """From a file as theirs are."""
    tensors, metadata = golden(shared, name)
    config = metadata["config"]
    path = tmp_path / "released.pth"
    torch.save({"model": part(tensors, "weights."), "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, path)
    same = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_classes", "cls_reduce")}
    options = {**same, "registers": config["num_cls_tokens"], "pretrained_cfg_overlay": {"file": str(path)}}
    model = timm.create_model("mambareg_tiny_patch16_224", pretrained=True, **options)
    seen = {}
    model.layers[0].register_forward_hook(lambda _, __, out: seen.update(out=out.detach()))
    check_golden(model, tensors)
    both = tensors["act.layers.0"] + tensors["act.layers.0.residual"]
    assert relative(seen["out"], both) <= 1e-5


@pytest.mark.parametrize("name", GOLDEN)
def test_registers_stand_where_the_authors_put_them(name, shared):
    tensors, metadata = golden(shared, name)
    config = metadata["config"]
    patches = tensors["act.patch_embed"].shape[1]
    tokens = Registers(config["num_cls_tokens"])
    order = tokens.packed_order([patches])
    places = [order.index(patches + i) for i in range(tokens.count)]
    assert places == tensors["cls_positions"].tolist()


@pytest.mark.parametrize("patches, count, places", [
    (196, 12, [15 + 16 * i for i in range(12)]), (196, 16, [11 + 12 * i for i in range(16)]), (3, 4, [0, 1, 2, 3]),
])  # fmt: skip
def test_registers_among_patches(patches, count, places):
    """As the paper's models have them; and where there are fewer patches than registers."""
    tokens, x = Registers(count), torch.arange(patches + count).float()[None, :, None]
    both = tokens.insert(x[:, :patches], x[:, patches:])
    assert both[0, places, 0].tolist() == list(range(patches, patches + count))
    assert both[0, :, 0].tolist() == tokens.packed_order([patches])
    assert torch.equal(tokens.extract(both)[0], x[:, :patches])
    assert torch.equal(tokens.extract(both)[1], x[:, patches:])


@pytest.mark.parametrize("options", [{"cls_reduce": 2}, {"positions": "factorised_learned"}, {"pool": "mean"}], ids=str)
def test_packed_images_are_each_as_if_alone(options):
    """Registers stand among each image's own patches. Float64; sums in another order."""
    model = small(**options)
    images = [torch.randn(3, *size, dtype=torch.float64) for size in ((8, 12), (12, 20), (4, 4))]
    packed, alone = model(PackedImages.from_images(images, 4)), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(packed, alone, rtol=1e-11, atol=1e-12)
    chosen = torch.randn_like(alone)
    found, truth = (torch.autograd.grad((x * chosen).sum(), list(model.parameters())) for x in (packed, alone))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


def test_the_published_initialisation():
    """Forward steps in [0.001, 0.1], backward ones at softplus(0)."""
    model = MambaReg(**{**TINY, "embed_dim": 64, "cls_reduce": 2})
    for block in model.layers:
        step = torch.nn.functional.softplus(block.mixer.dt_proj.bias)
        assert step.min() > 9e-4 and step.max() < 0.11 and not block.mixer.dt_proj_b.bias.any()
        bound = 128**-0.5 / 2**0.5
        assert 0.9 * bound < block.mixer.out_proj.weight.abs().max() <= bound
    for weight in (model.neck.weight, model.pos_embed, model.pos_embed_cls, model.cls_token):
        assert 0.015 < weight.std() < 0.025


def test_the_neck_is_there_where_it_is_used():
    model, image = small(cls_reduce=2), torch.randn(1, 3, 12, 20, dtype=torch.float64)
    with_neck = sum(p.numel() for p in model.parameters())
    assert model(image).shape == (1, 5) and model.head_hidden_size == 32
    model.reset_classifier(3, "avg")
    assert model.neck is None and model.head_hidden_size == 16 and model(image).shape == (1, 3)
    model.reset_classifier(5, "token")
    assert sum(p.numel() for p in model.parameters()) == with_neck and model(image).shape == (1, 5)
    assert model.neck.weight.dtype == model.norm_neck.weight.dtype == torch.float64
    model.prune_intermediate_layers([0])
    assert model.neck is None and model.pool == "none"


def test_maps_keep_the_registers():
    model = create_features("mambareg_tiny_patch16_224", 3, (64, 64), args={"depth": 4, "embed_dim": 16})
    maps = model(torch.randn(1, 3, 64, 64))
    assert [tuple(map_BCHW.shape[2:]) for map_BCHW in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    sum(map_BCHW.square().sum() for map_BCHW in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert any(name.endswith("pos_embed_cls") for name, _ in model.named_parameters())


@pytest.mark.parametrize("size", [(16, 24), (12, 20)], ids=str)
def test_files_fit_another_size(tmp_path, size):
    """Patches' positions are resampled, registers' taken as they are."""
    source, model = small(cls_reduce=2), small(cls_reduce=2, img_size=size)
    save_weights(source, tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    expected = source.state_dict()
    source.set_input_size(size)
    expected["pos_embed"] = source.pos_embed
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("cls_reduce", [1, 2])
@pytest.mark.parametrize("pool", ["mean", "max", "none"])
@pytest.mark.parametrize("classes", [5, 0])
def test_files_fit_another_pooling(tmp_path, caplog, cls_reduce, pool, classes):
    """What pools the registers is left out; the head behind it starts anew, which is told."""
    source, path = small(cls_reduce=cls_reduce), tmp_path / "weights.safetensors"
    save_weights(source, path)
    model = small(cls_reduce=cls_reduce, pool=pool, num_classes=classes)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("head") else source.state_dict())[name]), name
    assert ["another pooling" in record.message for record in caplog.records] == [True] * (classes > 0)


def test_a_file_without_a_head_fits_another_pooling(tmp_path, caplog):
    save_weights(small(cls_reduce=2, num_classes=0), tmp_path / "bare.safetensors")
    load_weights(small(cls_reduce=2, num_classes=0, pool="mean"), tmp_path / "bare.safetensors")
    assert not caplog.records


def test_a_file_without_the_neck_is_refused(tmp_path):
    save_weights(small(pool="mean"), tmp_path / "mean.safetensors")
    with pytest.raises(UserError, match=r"mean\.safetensors is .*another model: neck\.weight is missing"):
        load_weights(small(cls_reduce=2), tmp_path / "mean.safetensors")


def test_files_of_others_say_whose_they_are(tmp_path):
    """Of Mamba-Reg in Vim and the other way round, and of another variant of the same family."""
    vim, own = tmp_path / "vim.pth", tmp_path / "own.pth"
    released(vim, "vim_small_patch16_224", 24)
    released(own, "mambareg_small_patch16_224", 24)
    for name, path, whose in (
        ("vim_small_patch16_224", own, "mambareg_small_patch16_224"),
        ("mambareg_small_patch16_224", vim, "vim_small_patch16_224"),
        ("mambareg_tiny_patch16_224", own, "mambareg_small_patch16_224"),
    ):
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        with pytest.raises(UserError, match=rf"{path.name} is .*another model: .*these are weights of {whose}$"):
            load_weights(model, path)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"registers": 0}, "registers 0"),
        ({"registers": 1.5}, "registers 1.5"),
        ({"cls_reduce": 0}, "cls_reduce 0"),
        ({"cls_reduce": 3}, "cls_reduce 3 does not divide embed_dim 16"),
        ({"img_size": 18}, "18x18"),
    ],
    ids=str,
)
def test_what_raises(options, expected):
    with pytest.raises(UserError, match=expected):
        small(**options)


def test_pretrained_weights_are_the_authors(tmp_path):
    with pytest.raises(UnreachableWeights, match=r"Wangf3014/Mamba-Reg \(mambar_small_patch16_224\.pth\)"):
        timm.create_model("mambareg_small_patch16_224", pretrained=True, depth=1, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="mambareg_tiny_patch16_224 has no pretrained weights"):
        create_backbone("mambareg_tiny_patch16_224", 2, 3, (224, 224), pretrained=True)
