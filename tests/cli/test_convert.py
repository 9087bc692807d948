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
        ({"model": {"fc.weight": torch.zeros(2, 2)}}, "is not a Vim checkpoint"),
    ],
)
def test_other_checkpoints_are_refused(longvision, content, expected):
    torch.save(content, "in.pth")
    answer = longvision("convert", "in.pth", "out.safetensors")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert re.search(rf"in\.pth {expected}", answer.err)
    assert not Path("out.safetensors").exists()
