"""Whose a file of weights is: given to a model of another family, and where it is of no registered model."""

import re

import pytest
import torch

from longvision.errors import UserError
from longvision.models import ARM, NAMES, LocalVim, MambaReg, Vim, VMamba
from longvision.models.registered import kind_of
from longvision.models.weights import files
from longvision.models.weights.identify import _empty as empty
from longvision.models.weights.identify import identify, nearest

ONE_EACH = [
    "arm_tiny_patch16_224", "deepvit_s", "localvim_tiny_patch16_224.middle_cls_in1k", "mambareg_tiny_patch16_224",
    "navit_tiny_patch16", "vim_tiny_patch16_224", "vit_nano_patch4_32", "vmamba_tiny_s1l8_224", "vmamba_tiny_v0_224",
]  # fmt: skip


def weights_of(model):
    """Of its names and shapes, zeros."""
    return {key: torch.zeros(()).expand(tensor.shape) for key, tensor in model.state_dict().items()}


def of(kind, **options):
    with torch.device("meta"):
        return weights_of(kind(**options))


def test_every_family_is_here():
    assert {kind_of(name.partition(".")[0]) for name in ONE_EACH} == {kind_of(name) for name in NAMES}


@pytest.mark.parametrize("described", [False, True], ids=["released", "ours"])
@pytest.mark.parametrize("given", ONE_EACH)
def test_a_file_given_to_models_of_all_other_families(given, described, monkeypatch, caplog):
    """One sentence, with the model whose it is; as released, and as written here, with a description beside it."""
    read = weights_of(empty(given)), files._describe(empty(given)) if described else {}
    monkeypatch.setattr(files, "read_weights", lambda path: read)
    for model in ONE_EACH:
        if model != given:
            with pytest.raises(UserError, match=rf"^a\.pth is a .* another model: .* weights of {given}$") as error:
                files.load_weights(empty(model), "a.pth")
            assert "\n" not in str(error.value) and not caplog.records


OF_NO_MODEL = {
    "vmamba_tiny_s1l8_224": (VMamba, {"depths": (2, 2, 9, 2)}, r"layers\.2\.blocks\.8\.\S+ is unknown"),
    "mambareg_tiny_patch16_224": (MambaReg, {"registers": 4}, r"cls_token is \(1, 4, 192\)"),
    "mambareg_small_patch16_224": (
        MambaReg, {"embed_dim": 384, "cls_reduce": 2, "depth": 12}, r"layers\.12\.\S+ is missing",
    ),
    "arm_base_patch16_224": (ARM, {"depth": 24}, r"layers\.12\.\S+ is unknown"),
    "localvim_tiny_patch16_224.rope_in1k": (LocalVim, {"cls_token": "none"}, r"rope\.freqs_cos is missing"),
    "vim_tiny_patch16_224": (Vim, {"embed_dim": 180}, r"cls_token is \(1, 1, 180\)"),
    "vim_small_patch16_224": (Vim, {"embed_dim": 384, "direction": "none"}, r"A_b_log is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_NO_MODEL)
def test_files_of_no_registered_model(name):
    """The nearest is named as such, with what differs: nothing that would be refused is said to fit."""
    kind, options, differs = OF_NO_MODEL[name]
    weights = of(kind, **options)
    with pytest.raises(UserError, match=rf"a\.pth.*{re.escape(name)}.*{differs}.*models\.{kind.__name__}\(") as error:
        identify(weights, "a.pth")
    assert "\n" not in str(error.value)
    other = empty("deepvit_s")
    hint = "" if options.get("embed_dim") == 180 else f"; the nearest of ours is {name}"  # of which no tensor fits
    with pytest.raises(UserError, match=rf"a\.pth is a checkpoint for another model: .* more{re.escape(hint)}$"):
        files.check_fits(weights, other, "a.pth")


def test_a_file_of_the_pre_training():
    """ARM's has one scan a block."""
    weights = {key: w for key, w in weights_of(empty("arm_base_patch16_224")).items() if not re.search("_[bc]", key)}
    with pytest.raises(UserError, match=r"layers\.0\.mixer\.A_b_log is missing.*"):
        files.check_fits(weights, empty("arm_base_patch16_224"), "a.pth")
    match = nearest(weights)
    assert match.name == "arm_base_patch16_224" and "layers.0.mixer.A_c_log is missing" in match.differ


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_femto"])
def test_a_file_of_timm_s_is_nobody_s(name):
    weights = weights_of(empty(name))
    assert nearest(weights) is None
    with pytest.raises(UserError, match=r"a\.pth is not a checkpoint of a ARM, DeepViT"):
        identify(weights, "a.pth")


@pytest.mark.parametrize("name", NAMES)
def test_every_model_knows_its_own(name):
    """For other numbers of classes and channels, and without a head."""
    tagged = ONE_EACH[2] if name in ONE_EACH[2] else name
    model, weights = empty(tagged), weights_of(empty(tagged))
    head, first = model.head_name, f"{model.pretrained_cfg['first_conv']}.weight"
    weights[f"{head}.weight"], weights[f"{head}.bias"] = weights[f"{head}.weight"][:1].expand(7, -1), torch.zeros(7)
    weights[first] = weights[first][:, :1].expand(-1, 4, -1, -1)
    found = identify(weights, "a.pth")
    assert (found.name, found.arguments) == (tagged, ", num_classes=7, in_chans=4")
    found = identify({key: w for key, w in weights.items() if not key.startswith(head)}, "a.pth")
    assert (found.name, found.arguments) == (tagged, ", num_classes=0, in_chans=4")
