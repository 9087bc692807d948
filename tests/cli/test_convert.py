"""`longvision convert`: the authors' pickles become safetensors that timm loads to the same logits."""

import argparse
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

import longvision.models  # noqa: F401 registers them


def write_pickle(path, name="vim_nano_patch4_32", prefix="", **arguments):
    """The authors' format. -> the model whose weights it holds."""
    model = timm.create_model(name, **arguments).eval()
    weights = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save({"model": weights, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}, path)
    return model


@pytest.mark.parametrize(
    "arguments", [{}, {"num_classes": 7}, {"in_chans": 1, "num_classes": 3}], ids=["usual", "classes", "grey"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_printed_line_gives_the_same_logits(longvision, arguments, prefix):
    model = write_pickle("in.pth", prefix=prefix, **arguments)
    answer = longvision("convert", "in.pth", "out.safetensors")
    assert (answer.code, answer.err) == (0, "")
    first, line = answer.out.splitlines()
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    assert first == (
        f"out.safetensors: vim_nano_patch4_32, {len(model.state_dict())} tensors, {count:,} parameters, "
        f"{arguments.get('num_classes', 10)} classes"
    )
    loaded = eval(line, {"timm": timm}).eval()
    x_BCHW = torch.randn(2, arguments.get("in_chans", 3), 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x_BCHW), model(x_BCHW), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "vim_tiny_patch16_stride8_224"])
def test_the_variant_is_recognised(longvision, name):
    model = write_pickle("in.pth", name)
    answer = longvision("convert", "in.pth", "out.safetensors")
    assert answer.code == 0, answer.err
    assert f": {name}, " in answer.out
    loaded = eval(answer.out.splitlines()[1], {"timm": timm})
    own, weights = loaded.state_dict(), model.state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[key], weights[key]) for key in weights)


FAMILIES = [
    *("deepvit_16", "deepvit_s", "deepvit_l_384", "mambareg_base_patch16_224", "arm_small_patch16_224"),
    *("localvim_tiny_patch16_224.rope_in1k", "vmamba_tiny_v0_224"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_recognised(longvision, name, monkeypatch):
    with torch.device("meta"):
        model = timm.create_model(name, in_chans=1)
    weights = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in model.state_dict().items()}
    monkeypatch.setattr("longvision.models.weights.files.read_weights", lambda path: (weights, {}))
    monkeypatch.setattr("longvision.models.weights.files.write_weights", lambda *_: None)
    Path("in.pth").touch()
    answer = longvision("convert", "in.pth", "out.safetensors")
    assert answer.code == 0, answer.err
    count = sum(p.numel() for p in model.parameters())
    assert f": {name}, {len(weights)} tensors, {count:,} parameters, 1000 classes" in answer.out
    assert answer.out.rstrip().endswith(", in_chans=1)")
    if (patches := weights.get("patch_embed.proj.weight")) is None:
        return
    weights["patch_embed.proj.weight"] = patches[:100]
    answer = longvision("convert", "in.pth", "out.safetensors")
    assert answer.code == 2 and answer.err.count("\n") == 1
    assert f"nearest, {name}, differ: patch_embed.proj.weight is (100, " in answer.err


def test_safetensors_again(longvision):
    write_pickle("in.pth")
    assert longvision("convert", "in.pth", "one.safetensors").code == 0
    assert longvision("convert", "one.safetensors", "two.safetensors").code == 0
    with safe_open("one.safetensors", "pt") as one, safe_open("two.safetensors", "pt") as two:
        assert one.metadata() == two.metadata()
        assert set(one.keys()) == set(two.keys())


def test_nothing_is_overwritten_and_nothing_half_written(longvision):
    write_pickle("in.pth")
    Path("there.safetensors").write_text("kept")
    assert longvision("convert", "in.pth", "there.safetensors").code == 2
    assert Path("there.safetensors").read_text() == "kept"
    longvision("convert", "in.pth", "out.safetensors")
    assert sorted(path.name for path in Path().iterdir()) == ["in.pth", "out.safetensors", "there.safetensors"]


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"model": {}}, "holds no weights"),
        ([1, 2], "holds no weights"),
        ({"model": {"fc.weight": torch.zeros(2, 2)}}, "is not a checkpoint of a ARM, DeepViT, LocalVim"),
    ],
)
def test_other_checkpoints_are_refused(longvision, content, expected):
    torch.save(content, "in.pth")
    answer = longvision("convert", "in.pth", "out.safetensors")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert re.search(rf"in\.pth {expected}", answer.err)
    assert not Path("out.safetensors").exists()


@pytest.mark.slow
def test_a_published_detr_becomes_one_that_predicts(longvision):
    """Of another width and with fewer layers, but of its backbone, which tells its name."""
    pytest.importorskip("transformers")
    from longvision.heads.detr import create_detr
    from longvision.inference import Predictor

    model = create_detr("resnet50", 91, 3, (64, 64), queries=4, width=16, layers=1).eval()
    weights = {name.removeprefix("model."): weight for name, weight in model.state_dict().items()}
    torch.save({"model": weights}, "detr.pth")
    answer = longvision("convert", "detr.pth", "out.safetensors")
    assert (answer.code, answer.err) == (0, "")
    first, line = answer.out.splitlines()
    assert "DETR on resnet50" in first and "91 classes" in first and line.startswith("longvision predict out.safe")
    predictor = Predictor("out.safetensors", "cpu")
    assert predictor.classes[1] == "person" and predictor.classes[90] == "toothbrush"
    assert predictor.description.coco_ids.categories[90] == 90
    assert predictor.description.input.evaluated_size(480, 640) == (800, 1067)
    assert predictor.description.input.evaluated_size(640, 480) == (1067, 800)
    own = predictor.model.state_dict()
    assert all(torch.equal(own[name], weight) for name, weight in model.state_dict().items())
    (found,) = predictor.model.detect([torch.randn(3, 64, 96)], [(64, 96)])
    assert len(found) == 4
    torch.save({"model": {name: weight for name, weight in weights.items() if ".layer3.5." not in name}}, "other.pth")
    answer = longvision("convert", "other.pth", "second.safetensors")
    assert answer.code == 2 and "resnet50" in answer.err and answer.err.count("\n") == 1
