"""Models by name: what a user can mend is said in a sentence, what fails otherwise keeps its own error."""

import argparse
import logging
import re

import pytest
import timm
import torch
from torch import nn

from longvision.errors import UserError
from longvision.models import NAMES
from longvision.models.backbone import (
    checkpoint_activations,
    create_backbone,
    create_features,
    create_sized,
    free_patch,
)

NANO = "vim_nano_patch4_32"


def test_wrong_arguments_sizes_and_weights_are_the_user_s(tmp_path):
    with pytest.raises(UserError, match="dirction"):
        create_backbone(NANO, 2, 3, (32, 32), args={"dirction": "ssm"})
    with pytest.raises(UserError, match="depth"):
        create_backbone(NANO, 2, 3, (32, 32), args={"depth": 0})
    with pytest.raises(UserError, match="30x32"):
        create_backbone(NANO, 2, 3, (30, 32))
    with pytest.raises(UserError, match="vim_nano_patch4_32"):
        create_backbone("vim_nano_patch4_31", 2, 3, (32, 32))
    with pytest.raises(UserError, match=rf"{NANO} has no pretrained weights"):
        create_backbone(NANO, 2, 3, (32, 32), pretrained=True)
    with pytest.raises(UserError, match="could not be fetched"):
        create_backbone("vim_tiny_patch16_224", 2, 3, (32, 32), pretrained=True, args={"depth": 1})
    torch.save(timm.create_model("resnet10t", num_classes=2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth"):
        create_backbone(NANO, 2, 3, (32, 32), pretrained=str(tmp_path / "other.pth"))
    for name in ("missing.pth", "missing.safetensors"):
        for model in (NANO, "resnet10t"):
            with pytest.raises(UserError, match=name):
                create_backbone(model, 2, 3, (32, 32), pretrained=str(tmp_path / name))


def test_weights_of_another_of_timm_s_models_are_told_in_a_line(tmp_path):
    weights = timm.create_model("resnet10t").state_dict()
    torch.save({**weights, "bn1.weight": torch.zeros(3)}, tmp_path / "wide.pth")
    torch.save({"other": torch.zeros(1), **weights}, tmp_path / "more.pth")
    torch.save(weights, tmp_path / "resnet10t.pth")
    for model, file, expected in (
        ("resnet10t", "wide.pth", r"bn1\.weight: [^;]*\[3\][^;]*\[64\]\)"),
        ("resnet10t", "more.pth", "other is unknown to the model"),
        ("resnet18", "resnet10t.pth", r"(\S+ is missing; ){5}and \d+ more"),
    ):
        with pytest.raises(UserError, match=rf"{re.escape(file)} is a checkpoint for another model: {expected}$"):
            create_backbone(model, 1000, 3, (32, 32), pretrained=str(tmp_path / file))


HEADS = {"resnet10t": "fc", "test_vit": "head"}


def saved(path, name, classes, **others):
    """A file as timm's training writes it. -> the model, its weights random."""
    model = timm.create_model(name, num_classes=classes, **others)
    torch.save({"state_dict": model.state_dict(), "arch": name, "args": argparse.Namespace(lr=1e-3)}, path)
    return model


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
@pytest.mark.parametrize(
    "in_file, wanted, told",
    [(2, 2, ""), (2, 3, "a head for 2 classes, the model 3"), (2, 1000, "a head for 2 classes, the model 1000"),
     (1000, 2, "a head for 1000 classes, the model 2"), (0, 2, "no head that fits, the model 2"), (2, 0, "")],
    ids=str,
)  # fmt: skip
def test_a_file_of_timm_s_own_keeps_its_head(tmp_path, caplog, name, in_file, wanted, told):
    """Where it is for as many classes; else its head starts anew, which is told; all else is the file's."""
    path, head = str(tmp_path / "mine.pth"), HEADS[name]
    source = saved(path, name, in_file).state_dict()
    model = create_backbone(name, wanted, 3, (160, 160), pretrained=path)
    for key, tensor in model.state_dict().items():
        if not key.startswith(f"{head}."):
            assert torch.equal(tensor, source[key]), key
    kept = wanted == in_file
    assert not wanted or not in_file or torch.equal(model.get_parameter(f"{head}.bias"), source[f"{head}.bias"]) == kept
    assert [record.message for record in caplog.records] == (
        [f"{path} has {told}: its head starts anew"] if told else []
    )


@pytest.mark.parametrize("make", ["classes", "maps", "pyramid"])
def test_a_file_of_another_of_timm_s_models_is_refused(tmp_path, make):
    """Also where the numbers of classes differ, and where no head is wanted: timm would load a part, or nothing."""
    name, other = ("vit_tiny_patch16_224", "resnet10t") if make == "pyramid" else ("resnet10t", "vit_tiny_patch16_224")
    options = {"args": {"depth": 1}} if make == "pyramid" else {}
    path = str(tmp_path / "other.pth")

    def created():
        if make == "classes":
            return create_backbone(name, 3, 3, (64, 64), pretrained=path)
        return create_features(name, 3, (64, 64), pretrained=path, **options)

    saved(path, other, 2, **({"depth": 1} if "vit" in other else {}))
    with pytest.raises(UserError, match=r"^\S+other\.pth is a checkpoint for another model: \S+ is missing; ") as error:
        created()
    assert "\n" not in str(error.value)
    saved(path, name, 2, **options.get("args", {}))
    weights = torch.load(path, weights_only=False)["state_dict"]
    own = created().state_dict()
    assert sum(any(key.endswith(mine) and torch.equal(own[key], w) for key in own) for mine, w in weights.items()) > 10
    first = next(iter(weights))
    del weights[first]
    torch.save(weights, path)
    with pytest.raises(
        UserError, match=rf"other\.pth is a checkpoint for another model: {re.escape(first)} is missing$"
    ):
        created()
    torch.save({**weights, first: created_first(name, first, options), "more": torch.zeros(1)}, path)
    if make == "classes":
        with pytest.raises(UserError, match=r"other\.pth is .*another model: more is unknown to the model$"):
            created()
    else:  # maps do not need all of a file
        created()


def test_a_model_of_timm_s_without_a_head_needs_none_of_the_file_s(tmp_path):
    """LeViT's has a norm, which goes with it."""
    path = str(tmp_path / "levit.pth")
    source = saved(path, "levit_128s", 3)
    model = create_backbone("levit_128s", 0, 3, (224, 224), pretrained=path)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())


def created_first(name, key, options):
    return timm.create_model(name, num_classes=2, **options.get("args", {})).state_dict()[key]


def test_a_pickle_that_holds_code_is_refused_for_timm_s_own_too(tmp_path):
    torch.save({"state_dict": {}, "more": Unknown()}, tmp_path / "code.pth")
    with pytest.raises(UserError, match=r"code\.pth is refused, and nothing in it was run"):
        create_backbone("resnet10t", 2, 3, (32, 32), pretrained=str(tmp_path / "code.pth"))


class Unknown:
    """To a reader of weights."""


def test_timm_s_log_is_as_before(tmp_path, caplog):
    path = str(tmp_path / "mine.pth")
    saved(path, "resnet10t", 2)
    log = logging.getLogger("timm.models._builder")
    before = log.level, list(log.filters)
    create_backbone("resnet10t", 3, 3, (32, 32), pretrained=path)
    with pytest.raises(UserError):
        create_backbone("resnet18", 3, 3, (32, 32), pretrained=path)
    assert (log.level, list(log.filters)) == before


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a bug"), KeyError(1)])
def test_what_nobody_can_mend_keeps_its_error(monkeypatch, failure):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(failure))
    with pytest.raises(type(failure)) as caught:
        create_backbone(NANO, 2, 3, (32, 32))
    assert caught.value is failure


def test_a_convolutional_model_is_not_told_the_size():
    assert create_sized("resnet10t", (32, 48), num_classes=2)(torch.randn(1, 3, 32, 48)).shape == (1, 2)
    assert create_sized(NANO, (32, 48), depth=1).grid == (8, 12)
    with pytest.raises(TypeError, match="dept"):
        create_sized(NANO, (32, 48), dept=1)


def test_activation_checkpointing():
    for model in (create_backbone(NANO, 2, 3, (32, 32)), create_features(NANO, 3, (32, 32))):
        checkpoint_activations(nn.Sequential(model))
        assert [m.grad_checkpointing for m in model.modules() if hasattr(m, "grad_checkpointing")] == [True]
    with torch.device("meta"):
        vgg = timm.create_model("vgg11", num_classes=1)
    with pytest.raises(UserError, match="VGG"):
        checkpoint_activations(vgg)
    with pytest.raises(UserError, match="Linear"):
        checkpoint_activations(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "name, args, patch",
    [
        ("navit_tiny_patch16", {"embed_dim": 64}, 16),
        (NANO, {"patch_size": 8}, 8),
        ("test_vit", {"dynamic_img_size": True}, 16),
        (NANO, {"stride": 2}, "Vim"),
        ("test_vit", {"dynamic_img_size": False}, "VisionTransformer"),
        ("resnet10t", {}, "ResNet"),
    ],
    ids=["navit", "vim", "timm", "overlapping", "one-size", "convolutional"],
)
def test_models_of_images_of_every_size(name, args, patch):
    depth = {"depth": 1} if "patch" in name else {}
    model = create_backbone(name, 2, 3, (32, 32), args={**depth, **args})
    if isinstance(patch, int):
        assert free_patch(model, "tokens") == patch
    else:
        with pytest.raises(UserError, match=f"tokens: {patch} does not take images of every size"):
            free_patch(model, "tokens")


def test_our_names():
    vims = timm.list_models("vim_*", exclude_filters="*_pyramid")
    navits = [f"navit_{size}_patch16" for size in ("tiny", "small", "base")]
    deepvits = [f"deepvit_{size}" for size in ("16", "24", "32", "l", "l_384", "s")]
    vmambas = [f"vmamba_{size}_{kind}_224" for size in ("small", "base") for kind in ("s1l20", "s2l15", "v0")]
    vmambas += [f"vmamba_tiny_{kind}_224" for kind in ("s1l8", "s2l5", "v0")]
    mambaregs = [f"mambareg_{size}_patch16_224" for size in ("tiny", "small", "base", "large")]
    arms = [f"arm_{size}_patch16_224" for size in ("tiny", "small", "base", "large", "huge")]
    localvims = [f"localvim_{size}_patch16_224" for size in ("tiny", "small")]
    others = [*mambaregs, *arms, *localvims, "vit_nano_patch4_32"]
    assert sorted(NAMES) == sorted([*vims, *navits, *deepvits, *vmambas, *others])


@pytest.mark.parametrize(
    "typed, first",
    [
        ("vim_tinny_patch16_224", "vim_tiny_patch16_224"),
        ("vim_nano", "vim_nano_patch4_32"),
        ("vim_small", "vim_small_patch16_224"),
        ("deit_tiny_patch16_244", "deit_tiny_patch16_224"),
        ("resnet19", "resnet18"),
    ],
)
def test_the_nearest_models_are_named(typed, first):
    with pytest.raises(UserError, match=rf"{typed}.*did you mean") as error:
        create_backbone(typed, 2, 3, (32, 32))
    found = re.findall(r"\w+", str(error.value).split("did you mean")[1])[::2]
    assert 1 <= len(found) <= 3
    assert first in (found[:1] if "vim" in typed else found)


def test_nothing_is_near():
    with pytest.raises(UserError, match=r"qqqqqqqqqqqq.*longvision models"):
        create_backbone("qqqqqqqqqqqq", 2, 3, (32, 32))
