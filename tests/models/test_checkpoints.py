"""Weights from files: what is read, what is refused, and that nothing in a file runs."""

import argparse
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch

from longvision.errors import ExistingFileError, MissingFileError, UserError
from longvision.layers import resample_pos_embed
from longvision.models import Vim
from longvision.models.weights.files import load_weights, read_weights, restore_weights, save_weights
from longvision.models.weights.hub import UnreachableWeights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_classes": 5}


def small(**options):
    return Vim(**{**SMALL, **options})


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def authors(weights):
    return {
        "model": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.99)}]},
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-3, model="vim", resume="", opt_betas=None),
    }


FORMATS = {
    "the authors'": lambda weights: authors(weights),
    "bare": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 1},
    "from DataParallel": lambda weights: {"model": {f"module.{name}": t for name, t in weights.items()}},
}


# What is read


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_pickles(tmp_path, format, suffix):
    source, model = small(), small()
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMATS[format](source.state_dict()), path)
    assert not same(source, model)
    load_weights(model, path)
    assert same(source, model)
    assert read_weights(str(path))[1] == {}


def test_the_old_pickle_format(tmp_path):
    """Before torch 1.6: a pickle that is no zip."""
    source, model = small(), small()
    torch.save(authors(source.state_dict()), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_weights(model, tmp_path / "old.pth")
    assert same(source, model)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others(tmp_path, metadata):
    source, model = small(), small()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path, metadata)
    load_weights(model, path)
    assert same(source, model) and read_weights(path)[1] == {}


def test_safetensors_of_ours_carry_what_names_do_not_say(tmp_path):
    source, path = small(img_size=(32, 48), cls_token="head"), tmp_path / "weights.safetensors"
    save_weights(source, path, {"classes": ["a", "b"], "mean": [0.5]})
    weights, metadata = read_weights(path)
    assert metadata == {"grid": [4, 6], "cls_token": "head", "classes": ["a", "b"], "mean": [0.5]}
    assert weights.keys() == source.state_dict().keys()
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]  # nothing half-written beside it


def test_the_grid_in_the_metadata_is_believed(tmp_path):
    """4 x 9 = 36 patches are as many as 6 x 6: only the metadata tells that they must be resampled."""
    source, model = small(img_size=(32, 72)), small(img_size=48)
    path = tmp_path / "wide.safetensors"
    save_weights(source, path)
    load_weights(model, path)
    assert source.pos_embed.shape == model.pos_embed.shape
    assert not torch.allclose(model.pos_embed, source.pos_embed)
    assert torch.equal(model.pos_embed[:, 18], source.pos_embed[:, 18])  # the class token's
    again = small(img_size=(32, 72))
    load_weights(again, path)
    assert same(again, source)


def test_the_class_token_in_the_metadata_is_believed(tmp_path):
    """A head token's row is found at the head, though the names alone would say the middle."""
    source, model = small(cls_token="head"), small(cls_token="none", pool="mean")
    save_weights(source, tmp_path / "head.safetensors")
    load_weights(model, tmp_path / "head.safetensors")
    assert torch.equal(model.pos_embed, source.pos_embed[:, 1:])
    middle, none = small(), small(cls_token="none", pool="mean")
    torch.save(middle.state_dict(), tmp_path / "middle.pth")
    load_weights(none, tmp_path / "middle.pth")
    assert torch.equal(none.pos_embed, torch.cat([middle.pos_embed[:, :8], middle.pos_embed[:, 9:]], 1))


def test_bf16_weights_fill_a_float32_model(tmp_path):
    source, model = small().bfloat16(), small()
    save_weights(source, tmp_path / "half.safetensors")
    load_weights(model, tmp_path / "half.safetensors")
    assert all(p.dtype == torch.float32 for p in model.parameters()) and same(source.float(), model)


def test_reading_leaves_the_file_alone_and_the_globals_unsafe(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(authors(small().state_dict()), path)
    before = path.read_bytes()
    read_weights(path)
    assert path.read_bytes() == before
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_names_behind_a_prefix(tmp_path):
    """Of a larger model's file, the backbone's part."""
    source, model = small(), small()
    weights = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({**weights, "decoder.weight": torch.ones(2)}, tmp_path / "larger.pth")
    with pytest.raises(UserError, match=r"larger\.pth.*'encoder\.'"):
        model.load_pretrained(tmp_path / "larger.pth", prefix="encoder.")
    with pytest.raises(UserError, match="is missing"):
        model.load_pretrained(tmp_path / "larger.pth")
    model.load_pretrained(tmp_path / "larger.pth", prefix="backbone.")
    assert same(model, source)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.register_buffer("part", self.one.weight.detach()[1:3])  # a view of the same memory


def test_tied_weights_are_saved_and_load_again(tmp_path):
    source, model = Tied(), Tied()
    save_weights(source, tmp_path / "tied.safetensors")
    restore_weights(model, tmp_path / "tied.safetensors")
    assert same(source, model) and model.one.weight is model.other.weight


# What is refused


class Writer:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Shell:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Plain:
    """A class of the user's own, harmless."""


@pytest.mark.parametrize("where", ["inside", "instead"])
@pytest.mark.parametrize("hostile", [Writer, Shell])
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_a_file_is_not_run(tmp_path, where, hostile, write, suffix):
    made, path = tmp_path / "made", tmp_path / f"hostile{suffix}"
    content = authors({"w": torch.ones(2)}) | {"args": hostile(made)} if where == "inside" else hostile(made)
    write(content, path)
    with pytest.raises(UserError, match=r"hostile\.\w+ is (refused, and nothing in it was run|not a )"):
        load_weights(small(), path)
    assert not made.exists()
    with open(path, "rb") as file:  # or the test proves nothing: loaded without care, it does run
        (torch.load(file, weights_only=False) if write is torch.save else pickle.load(file))
    assert made.exists()


def test_what_was_refused_is_named(tmp_path):
    torch.save(authors({"w": torch.ones(2)}) | {"extra": Plain()}, tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"plain\.pth is refused, and nothing in it was run: it holds \S*Plain beside"):
        read_weights(tmp_path / "plain.pth")
    torch.save({"model": {"w": torch.ones(2)}, "args": Shell("x")}, tmp_path / "shell.pth")
    with pytest.raises(UserError, match=r"it holds (posix|nt)\.system beside"):
        read_weights(tmp_path / "shell.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80", bytes(range(256)) * 9, b"PK\x03\x04 no zip", b"<html>404</html>"])
def test_bytes_that_are_no_checkpoint(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\{suffix} is (not a|refused)"):
        load_weights(small(), path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_download_that_broke_off(tmp_path, suffix):
    path, whole = tmp_path / f"weights{suffix}", tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(small().state_dict(), whole)
    else:
        save_weights(small(), whole)
    path.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(UserError, match=rf"weights\{suffix} is not a"):
        load_weights(small(), path)


def test_weights_are_replaced_at_once_or_stay(tmp_path, monkeypatch):
    """Written once, under a name of its own; without `overwrite` what is there stays."""
    path, before, after = tmp_path / "model.safetensors", small(), small()
    save_weights(before, path, {"n": 1})
    with pytest.raises(ExistingFileError):
        save_weights(after, path)
    written, save_file = [], safetensors.torch.save_file

    def breaking(*arguments):
        save_file(*arguments)
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", breaking)
        with pytest.raises(OSError, match="disk full"):
            save_weights(after, path, {"n": 2}, overwrite=True)
    assert same_file(path, before, 1) and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(safetensors.torch, "save_file", lambda *all: (written.append(all[1]), save_file(*all)))
    save_weights(after, path, {"n": 2}, overwrite=True)
    assert same_file(path, after, 2) and list(tmp_path.iterdir()) == [path]
    assert len(written) == 1 and written[0] != path


def same_file(path, model, number):
    weights, metadata = read_weights(path)
    own = model.state_dict()
    return metadata["n"] == number and all(torch.equal(weights[name], own[name]) for name in own)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "folder", "folder.safetensors"])
def test_no_such_file(tmp_path, name):
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(MissingFileError, match=f"{name} is not a file"):
        load_weights(small(), tmp_path / name)


@pytest.mark.parametrize(
    "content", [{}, [1, 2], 3, torch.ones(2), {"model": {}}, {"epoch": 3}, {"model": {"w": "x"}}], ids=str
)
def test_no_weights_in_it(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth holds no weights"):
        load_weights(small(), tmp_path / "weights.pth")


@pytest.mark.parametrize("classes, told", [(7, ["5 classes, the model 7"]), (0, []), (5, [])])
def test_a_head_that_starts_anew_is_told(tmp_path, caplog, classes, told):
    save_weights(small(), tmp_path / "weights.safetensors")
    load_weights(small(num_classes=classes), tmp_path / "weights.safetensors")
    assert [record.message.partition("head for ")[2].partition(":")[0] for record in caplog.records] == told


def test_another_model_s_file_says_which_tensors_differ(tmp_path):
    path = tmp_path / "weights.pth"

    def refused(weights, model=None):
        torch.save(weights, path)
        model = model or small()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        with pytest.raises(UserError, match=r"weights\.pth is a checkpoint for another model: ") as error:
            load_weights(model, path)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())  # nothing half-loaded
        return str(error.value)

    weights = small().state_dict()
    assert refused({k: v for k, v in weights.items() if "head" not in k}).endswith(
        "model: head.weight is missing; head.bias is missing"
    )
    assert refused(weights | {"extra.weight": torch.ones(2)}).endswith("model: extra.weight is unknown to the model")
    assert refused(weights | {"layers.1.mixer.D": torch.ones(3)}).endswith(
        "layers.1.mixer.D is (3,), the model's is (64,)"
    )
    assert "head.bias is missing" in refused({k: v for k, v in weights.items() if k != "head.bias"})
    assert refused({k: v for k, v in weights.items() if k != "pos_embed"}).endswith("model: pos_embed is missing")
    message = refused(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5).state_dict())
    assert "layers.0.norm.weight is missing" in message and message.count(";") == 5 and " more" in message
    message = refused(small(depth=3).state_dict())
    assert "layers.2.norm.weight is unknown to the model" in message
    assert "is missing" in refused(small(depth=1).state_dict())
    assert "conv1d_b.weight is missing" in refused(small(direction="none").state_dict())
    message = refused(small(embed_dim=48).state_dict())
    assert "cls_token is (1, 1, 48), the model's is (1, 1, 32)" in message
    assert "the model's is (32, 3, 8, 8)" in refused(small(patch_size=4, stride=8, img_size=28).state_dict())


def test_positions_of_an_unknown_grid(tmp_path):
    torch.save(small(img_size=(32, 48)).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"positions for 24 patches, which do not fill a grid of 4x4.*img_size"):
        load_weights(small(), tmp_path / "wide.pth")
    model = small(img_size=(32, 48))
    load_weights(model, tmp_path / "wide.pth")  # in a model of that size there is nothing to guess


@pytest.mark.parametrize("existing", ["file", "folder"])
def test_what_exists_is_not_overwritten(tmp_path, existing):
    path = tmp_path / "weights.safetensors"
    path.write_text("precious") if existing == "file" else path.mkdir()
    with pytest.raises(ExistingFileError, match=r"weights\.safetensors exists already and is not overwritten"):
        save_weights(small(), path)
    assert path.is_dir() or path.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


# Through timm


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_create_model_from_a_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    source = timm.create_model("vim_nano_patch4_32", depth=2, num_classes=10)
    if suffix == ".pth":
        torch.save(authors(source.state_dict()), path)
    else:
        save_weights(source, path)
    overlay = {"file": str(path)}

    def created(**options):
        return timm.create_model(
            "vim_nano_patch4_32", pretrained=True, pretrained_cfg_overlay=overlay, depth=2, **options
        ).eval()

    assert same(created(num_classes=10), source)
    larger = created(num_classes=10, img_size=64)
    assert larger.grid == (16, 16) and torch.equal(larger.pos_embed[:, 128], source.pos_embed[:, 32])
    assert created(num_classes=3).head.out_features == 3
    image = torch.randn(1, 3, 32, 32)
    maps = created(features_only=True, out_indices=(0, 1))(image)
    truth = source.eval().forward_intermediates(image, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, truth))


def test_checkpoint_path_of_timm(tmp_path):
    source = timm.create_model("vim_nano_patch4_32", depth=2)
    path = tmp_path / "weights.safetensors"
    save_weights(source, path)
    assert same(timm.create_model("vim_nano_patch4_32", depth=2, checkpoint_path=str(path)), source)


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "vim_small_patch16_stride8_224.in1k"])
def test_without_a_network_one_sentence_says_how_to_do(name, tmp_path):
    with pytest.raises(UnreachableWeights, match="could not be fetched from hustvl/Vim-") as error:
        timm.create_model(name, pretrained=True, depth=1, cache_dir=str(tmp_path))
    message = str(error.value)
    assert 'pretrained=True, pretrained_cfg_overlay=dict(file="PATH")' in message
    assert "\n" not in message and "Hugging Face hub" in message


def test_a_model_without_published_weights_says_so():
    with pytest.raises(RuntimeError, match=r"[Nn]o pretrained weights"):
        timm.create_model("vim_nano_patch4_32", pretrained=True)


# Positions where names and shapes do not tell the grid


def test_released_positions_are_a_square_also_for_a_strip_of_as_many_patches(tmp_path):
    square = small(img_size=(32, 32))  # 4 x 4 patches, without a word about it
    torch.save({"model": square.state_dict()}, tmp_path / "released.pth")
    strip = small(img_size=(16, 64))  # 2 x 8
    load_weights(strip, tmp_path / "released.pth")
    expected = resample_pos_embed(square.pos_embed, (4, 4), (2, 8), square.tokens)
    assert torch.equal(strip.pos_embed, expected)
    assert not torch.equal(strip.pos_embed, square.pos_embed)


def test_a_class_token_elsewhere_takes_its_position_along(tmp_path):
    middle = small(cls_token="middle")
    save_weights(middle, tmp_path / "middle.safetensors")
    head = small(cls_token="head")
    load_weights(head, tmp_path / "middle.safetensors")
    patches, token = middle.tokens.extract(middle.pos_embed)
    assert torch.equal(head.pos_embed, torch.cat([token, patches], dim=1))


def test_a_grid_that_its_positions_do_not_fill(tmp_path):
    save_weights(small(), tmp_path / "false.safetensors", {"grid": [3, 3]})
    with pytest.raises(UserError, match=r"16 patches, which do not fill a grid of 3x3"):
        load_weights(small(), tmp_path / "false.safetensors")


def test_a_pickle_that_holds_itself_ends(tmp_path):
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "ring.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load_weights(small(), tmp_path / "ring.pth")


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX's")
def test_weights_can_be_read_by_whoever_can_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    save_weights(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
