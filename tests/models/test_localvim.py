"""LocalVim: the authors' code (golden files), windows, rotary positions, released files."""

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longvision.errors import UserError
from longvision.layers.rope import rotated, rotations
from longvision.models import LocalVim
from longvision.models.backbone import create_backbone, create_features
from longvision.models.localvim import SEARCHED
from longvision.models.weights import hub
from longvision.models.weights.files import load_weights, save_weights
from support.golden import check_golden, golden, part, relative, released

GOLDEN = ["localvim_rope_32", "localvim_rope_pad_20", "localvim_midcls_32", "localvim_midcls_pad_20"]
NAME = "localvim_tiny_patch16_224"
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_classes": 5}
ROPE = {"cls_token": "none", "rope": True}


def small(**options):
    return LocalVim(**{**TINY, **options}).double()


def options_of(config):
    """The authors' arguments as ours."""
    same = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_classes")}
    words = [" ".join(word.replace("_flip", "f") for word in layer) for layer in config["directions"]]
    cls_token = "middle" if config.get("use_middle_cls_token") else "none"
    return {**same, "directions": words, "cls_token": cls_token, "rope": config["if_rope"]}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_code(name, shared, tmp_path):
    """From a file as theirs are, rotary positions in it."""
    tensors, metadata = golden(shared, name)
    config = metadata["config"]
    weights, path = part(tensors, "weights."), tmp_path / "released.ckpt"
    torch.save({"state_dict": weights}, path)
    options = {**options_of(config), "pretrained_cfg_overlay": {"file": str(path)}}
    model = timm.create_model(NAME, pretrained=True, **options)
    seen = {}
    model.layers[0].register_forward_hook(lambda _, __, out: seen.update(out=out.detach()))
    check_golden(model, tensors)
    assert relative(seen["out"], tensors["act.layers.0"] + tensors["act.layers.0.residual"]) <= 1e-5
    for name, _ in model.named_buffers():
        torch.testing.assert_close(LocalVim(**options_of(config)).get_buffer(name), weights[name])


def test_a_grid_that_is_not_square(shared):
    """Of the authors' code the first block is right, whose scans they undo rightly: rows and windows."""
    tensors, metadata = golden(shared, "localvim_nonsquare_16x32")
    config = metadata["config"]
    model = LocalVim(**options_of(config)).eval()
    model.load_state_dict(part(tensors, "weights."))
    seen = {}
    model.layers[0].register_forward_hook(lambda _, __, out: seen.update(out=out.detach()))
    logits = model(tensors["image"])
    assert relative(seen["out"], tensors["act.layers.0"] + tensors["act.layers.0.residual"]) <= 1e-5
    assert relative(logits, tensors["logits"]) > 1e-3  # theirs puts tokens of column scans elsewhere


@torch.no_grad()
def test_columns_of_a_grid_are_rows_of_its_transpose():
    one, two = small(img_size=(8, 12), directions="h hf"), small(img_size=(12, 8), directions="v vf")
    one.pos_embed.zero_()
    two.load_state_dict(one.state_dict())
    two.patch_embed.proj.weight.copy_(one.patch_embed.proj.weight.mT)
    image = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    found = [model.forward_intermediates(x, intermediates_only=True)[1] for model, x in ((one, image), (two, image.mT))]
    torch.testing.assert_close(found[1].mT, found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, rope, tokens", [
    (NAME, False, 1), (f"{NAME}.middle_cls_in1k", False, 1), (f"{NAME}.rope_in1k", True, 0),
    ("localvim_small_patch16_224", True, 0),
])  # fmt: skip
def test_what_was_released(name, rope, tokens):
    """The one without a class token has no position of it either: 7,994,152 parameters and not 7,994,536."""
    with torch.device("meta"):
        model, other = (timm.create_model(each, depth=1) for each in (name, NAME))
    assert (model.rope is not None, model.tokens.count) == (rope, tokens)
    assert model.pretrained_cfg["architecture"] == name.partition(".")[0]
    count, usual = (sum(p.numel() for p in each.parameters()) for each in (model, other))
    assert count - usual == (tokens - 1) * 2 * 192 or "small" in name


def test_the_searched_directions():
    """Twenty layers of four, each another scan; the place in a layer's line tells the parameters."""
    layers = [line.split() for line in SEARCHED]
    assert len(layers) == 20 and all(len(set(layer)) == len(layer) == 4 for layer in layers)
    assert (layers[0], layers[19]) == (["h", "vf", "w7", "w7f"], ["v", "vf", "w2", "w2f"])
    with torch.device("meta"):
        model = timm.create_model(NAME, depth=2)
    for block, words in zip(model.layers, layers):
        found = {scan.order: (scan.reverse, scan.suffix, scan.decay) for scan in block.mixer.scans}
        assert found == {word: (word.endswith("f"), f"_{i}", f"A_log_{i}") for i, word in enumerate(words)}


def test_either_way_to_the_rotary_one():
    by_tag = timm.create_model(f"{NAME}.rope_in1k", depth=1, embed_dim=16)
    by_argument = timm.create_model(NAME, rope=True, depth=1, embed_dim=16)
    for model in (by_tag, by_argument):
        assert (
            model.rope is not None
            and model.pool == "mean"
            and model.pretrained_cfg["url"].endswith("/local_vim_tiny.ckpt")
        )


def test_rotary_positions():
    """Neighbouring channels turn by the row, those of the second half by the column; each step by 14 / side."""
    cos_MD, sin_MD = rotations((2, 2), 8, torch.zeros((), dtype=torch.float64))
    angle = torch.tensor([7, 7, 0.07, 0.07], dtype=torch.float64)  # of the second: frequencies 1 and 1 / 100
    still = torch.zeros(4, dtype=torch.float64)
    angles = torch.stack([torch.cat(pair) for pair in ((still, still), (still, angle), (angle, still), (angle, angle))])
    torch.testing.assert_close(cos_MD, angles.cos())
    torch.testing.assert_close(sin_MD, angles.sin())
    x = torch.eye(8, dtype=torch.float64)[0].expand(1, 4, 8)
    turned = rotated(x, cos_MD, sin_MD)[0, 2]
    torch.testing.assert_close(turned[:2], torch.stack([angle[0].cos(), angle[0].sin()]))
    assert not turned[2:].any()


def test_the_published_initialisation():
    model = LocalVim(**{**TINY, "embed_dim": 64})
    assert not model.cls_token.any()
    for block in model.layers:
        for name, module in block.mixer.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "out_proj":
                assert 0.01 < module.weight.std() < 0.03 and (module.bias is None or not module.bias.any()), name
        assert torch.equal(block.mixer.A_log_3[0].exp().round(), torch.arange(1.0, 17)) and (block.mixer.D_2 == 1).all()


@pytest.mark.parametrize("name", [NAME, "localvim_small_patch16_224"])
def test_maps(name):
    """Without a class token, with rotary positions or without: for any size."""
    model = create_features(name, 3, (64, 96), args={"depth": 4, "embed_dim": 16})
    maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(map_BCHW.shape[2:]) for map_BCHW in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(map_BCHW.square().sum() for map_BCHW in maps).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_files_of_the_other_tiny_say_so(tmp_path):
    """Whole ones, and those that have as many blocks as the model."""
    for name, other in ((f"{NAME}.rope_in1k", f"{NAME}.middle_cls_in1k"), (NAME, f"{NAME}.rope_in1k")):
        with torch.device("meta"):
            model = timm.create_model(name, depth=1)
        released(tmp_path / "whole.ckpt", other, 20, "state_dict")
        with pytest.raises(UserError, match=rf"whole\.ckpt is .*another model: .*these are weights of {other}$"):
            load_weights(model, tmp_path / "whole.ckpt")
        released(tmp_path / "short.ckpt", other, 1, "state_dict")
        with pytest.raises(UserError, match=r"another model: .*rope\.freqs_cos is "):
            load_weights(model, tmp_path / "short.ckpt")


def test_pretrained_weights_come_from_the_authors_release(tmp_path, monkeypatch):
    """One sentence where it cannot be reached; else the file is read as any."""
    source, asked = timm.create_model(NAME, depth=1, embed_dim=16), []

    def unreachable(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(hub, "download_cached_file", unreachable)
    with pytest.raises(hub.UnreachableWeights, match=r"hunto/LocalMamba/.*/local_vim_tiny_middle_cls_token\.ckpt"):
        timm.create_model(NAME, pretrained=True, depth=1, embed_dim=16)
    with pytest.raises(hub.UnreachableWeights, match=rf'create_model\("{NAME}\.rope_in1k", '):
        timm.create_model(f"{NAME}.rope_in1k", pretrained=True, depth=1, embed_dim=16)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.ckpt")
    path = str(tmp_path / "weights.ckpt")
    monkeypatch.setattr(hub, "download_cached_file", lambda url, **_: asked.append(url) or path)
    model = timm.create_model(NAME, pretrained=True, depth=1, embed_dim=16)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())
    release = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0"
    assert asked == [f"{release}/local_vim_tiny_middle_cls_token.ckpt"]
    with pytest.raises(UserError, match="localvim_small_patch16_224 has no pretrained weights"):
        create_backbone("localvim_small_patch16_224", 2, 3, (224, 224), pretrained=True)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"cls_token": "head"}, "cls_token='head'.*middle or none"),
        ({"rope": True}, "rope .*cls_token='none', not 'middle'"),
        ({**ROPE, "embed_dim": 18}, "embed_dim .* not 18"),
        ({"directions": "h v x7"}, "direction 'x7'"),
        ({"directions": "h w0"}, "direction 'w0'"),
        ({"directions": ""}, "direction ''"),
        ({"directions": [["h", "hf"]]}, r"directions \[\['h', 'hf'\]\]"),
        ({"directions": 3}, "directions 3"),
        ({"img_size": 18}, "18x18"),
    ],
    ids=str,
)
def test_what_raises(options, expected):
    with pytest.raises(UserError, match=expected):
        small(**options)


def test_rotary_positions_of_another_size(tmp_path):
    """Each side is stretched over as many, also where it is not the other one; in a file of weights too."""
    cos_MD, sin_MD = rotations((2, 7), 8, torch.zeros((), dtype=torch.float64))
    for place, angles in ((0, (0, 0)), (1, (0, 2)), (7, (7, 0)), (13, (7, 12))):
        expected = torch.tensor([angle * factor for angle in angles for factor in (1, 1, 0.01, 0.01)]).double()
        torch.testing.assert_close(cos_MD[place], expected.cos())
        torch.testing.assert_close(sin_MD[place], expected.sin())
    model, image = small(**ROPE), torch.randn(1, 3, 24, 12, dtype=torch.float64)
    save_weights(model, tmp_path / "weights.safetensors")
    logits = model(image)
    other = small(**ROPE, img_size=(24, 12))
    load_weights(other, tmp_path / "weights.safetensors")
    model.set_input_size((24, 12))
    for each in (model, other):
        torch.testing.assert_close(each(image), logits, rtol=1e-6, atol=1e-7)  # positions were resampled in float32
        assert each.rope.freqs_cos.shape == (18, 16)


def test_rotary_positions_are_computed_in_what_the_device_has():
    """MPS has no float64."""
    for like, dtype in ((torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)):
        with Dtypes() as seen:
            tables = rotations((3, 2), 8, torch.zeros((), dtype=like))
        assert {table.dtype for table in tables} == {dtype} and torch.float64 not in seen.dtypes


class Dtypes(TorchDispatchMode):
    """Of all that is computed."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        self.dtypes |= {found.dtype} if isinstance(found, torch.Tensor) else set()
        return found
