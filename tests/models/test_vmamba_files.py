"""Files of VMamba: those of its training, of older versions, of other variants, and from the authors' releases."""

import sys
import types

import pytest
import timm
import torch

from longvision.errors import UserError
from longvision.models import VMamba
from longvision.models.weights.files import check_fits
from longvision.models.weights.hub import UnreachableWeights
from longvision.models.weights.identify import identify, nearest
from support.vmambas import BOTH, TINY, V0, from_file


class Node(dict):
    """As yacs's, which the authors' training saves beside the weights."""

    def __init__(self, **content):
        super().__init__(**content)
        self.__dict__["__deprecated_keys__"] = set()


@pytest.mark.parametrize("key", ["model", "model_ema"])
def test_what_the_authors_training_saves(key, tmp_path, monkeypatch):
    source = VMamba(**TINY)
    Node.__module__, Node.__qualname__, Node.__name__ = "yacs.config", "CfgNode", "CfgNode"
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = Node
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", yacs)
        beside = {"config": Node(MODEL=Node(NAME="vssm", DEPTHS=[2, 2, 5, 2])), "max_accuray_ema": 82.6, "epoch": 262}
        torch.save({key: source.state_dict(), **beside}, tmp_path / "released.pth")
    model = from_file(tmp_path / "released.pth", **TINY)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_model_is_taken_where_an_average_is_beside_it(tmp_path, caplog):
    source, average = VMamba(**TINY), VMamba(**TINY)
    torch.save({"model_ema": average.state_dict(), "model": source.state_dict()}, tmp_path / "both.pth")
    with caplog.at_level("INFO"):
        model = from_file(tmp_path / "both.pth", **TINY)
    assert torch.equal(model.classifier.head.weight, source.classifier.head.weight)
    assert "model_ema" in caplog.text


def test_the_authors_model_in_one_file(tmp_path):
    """It has the projections of all directions in one matrix."""
    source, found = VMamba(**TINY), {}
    for name, tensor in source.state_dict().items():
        together = name.endswith(("x_proj_weight", "dt_projs_weight"))
        found[name.replace("_weight", ".weight") if together else name] = tensor.flatten(0, 1) if together else tensor
    torch.save({"model": found}, tmp_path / "one.pth")
    model = from_file(tmp_path / "one.pth", **TINY)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


@BOTH
def test_older_names_and_shapes(options, tmp_path):
    source = VMamba(**TINY, **options)
    older = {}
    for name, tensor in source.state_dict().items():
        if options:
            name = name.replace("patch_embed.0", "patch_embed.proj").replace("patch_embed.2", "patch_embed.norm")
        name = name.replace(".op.", ".self_attention.").replace("classifier.", "")
        name = name.replace(".norm.", ".ln_1.") if ".blocks." in name else name
        older[name] = tensor[:, :, None, None] if name.endswith(("_proj.weight", "fc1.weight")) else tensor
    torch.save({"model": older}, tmp_path / "older.pth")
    model = from_file(tmp_path / "older.pth", **TINY, **options)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_files_load_strictly(tmp_path):
    weights = VMamba(**TINY).state_dict()
    del weights["layers.1.blocks.0.op.Ds"]
    torch.save({"model": weights}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"layers\.1\.blocks\.0\.op\.Ds is missing"):
        from_file(tmp_path / "short.pth", **TINY)
    torch.save({"model": VMamba(**TINY, **V0).state_dict()}, tmp_path / "first.pth")
    with pytest.raises(UserError, match=r"patch_embed\.5\.weight is missing"):
        from_file(tmp_path / "first.pth", **TINY)


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8_224", "vmamba_base_s2l15_224", "vmamba_small_v0_224"])
def test_the_variant_of_a_file_is_known(name):
    """Also by its older names."""
    with torch.device("meta"):
        weights = timm.create_model(name, num_classes=7).state_dict()
    older = {key.replace("classifier.", "").replace(".0.norm.", ".0.ln_1."): value for key, value in weights.items()}
    for each in (weights, older):
        assert identify(each, "a.pth").name == nearest(each).name == name
    del weights["layers.0.blocks.0.norm.weight"]
    with pytest.raises(UserError, match=rf"a\.pth is of none .*{name}.*layers\.0\.blocks\.0\.norm\.weight is missing"):
        identify(weights, "a.pth")


def test_a_file_of_another_variant(tmp_path):
    """The message names it."""
    name = "vmamba_tiny_s2l5_224"
    with torch.device("meta"):
        model = timm.create_model(name)
    weights = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in model.state_dict().items()}
    with torch.device("meta"):
        other = timm.create_model("vmamba_tiny_s1l8_224")
    with pytest.raises(UserError, match=rf"a\.pth.*layers\.2\.blocks\.5\..*{name}"):
        check_fits(weights, other, "a.pth")


def test_weights_from_the_authors_releases(tmp_path, monkeypatch):
    """Fetched by the address that timm's configuration has; its # is no part of an address unless it is quoted."""
    source, asked = VMamba(**TINY, **V0), []
    torch.save({"model": source.state_dict()}, tmp_path / "released.pth")

    def fetch(url, **_):
        asked.append(url)
        return str(tmp_path / "released.pth")

    monkeypatch.setattr("longvision.models.weights.hub.download_cached_file", fetch)
    first = TINY | V0 | {"pretrained_cfg_overlay": {"num_classes": 5}}
    model = timm.create_model("vmamba_tiny_v0_224", pretrained=True, **first)
    assert torch.equal(model.classifier.head.weight, source.classifier.head.weight)
    releases = "https://github.com/MzeroMiko/VMamba/releases/download"
    assert asked == [f"{releases}/%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"]

    def fail(url, **_):
        raise OSError("no network")

    monkeypatch.setattr("longvision.models.weights.hub.download_cached_file", fail)
    with pytest.raises(
        UnreachableWeights, match=r"vmamba_base_s1l20_224\.in1k .*vssm1_base_0229s_ckpt_epoch_225.*file="
    ):
        timm.create_model("vmamba_base_s1l20_224", pretrained=True, **TINY)
    with pytest.raises(UserError, match="depths 8"):
        timm.create_model("vmamba_base_s1l20_224", depths=8)
