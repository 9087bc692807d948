"""Vim against the paper's equations written here, against the authors' numbers, and along each of its axes."""

import argparse
import math

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn

import longvision.models
from longvision.errors import UserError
from longvision.layers.mixer import DIRECTIONS
from longvision.layers.tokens import CLASS_TOKENS
from longvision.models import Vim

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_classes": 5}


def small(**options):
    return Vim(**{**SMALL, **options})


def relative(got, truth):
    """|got - truth| / |truth|; not finite counts as far away."""
    assert got.shape == truth.shape and torch.isfinite(got).all()
    return ((got.double() - truth.double()).norm() / truth.double().norm()).item()


@torch.no_grad()
def scatter(model):
    """Weights such as training leaves: no parameter at zero or one, no two alike, activations that stay near one."""
    for name, parameter in model.named_parameters():
        last = name.split(".")[-1]
        if "log" in last:
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif last in ("D", "D_b") or "norm" in name:
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
        elif last == "bias":
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif parameter.shape[0] == 1:  # class tokens and positions
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model


# A Vim written down a second time, in float64, from the paper's Algorithm 1


def second_scan(x, step, A, B, C, D):
    """(tokens, E) each, A (E, N), B and C (tokens, N)."""
    h, rows = torch.zeros_like(A), []
    for t in range(len(x)):
        h = torch.exp(step[t][:, None] * A) * h + torch.outer(step[t] * x[t], B[t])
        rows.append(h @ C[t] + D * x[t])
    return torch.stack(rows)


def second_walk(w, x, end):
    """One direction of one block, (tokens, E) -> (tokens, E); `end` is "" or "_b"."""
    log = "A_b_log" if end else "A_log"
    filters, padded = w[f"conv1d{end}.weight"][:, 0], torch.cat([x.new_zeros(3, x.shape[1]), x])
    x = sum(filters[:, k] * padded[k : k + len(x)] for k in range(4)) + w[f"conv1d{end}.bias"]
    x = x * torch.sigmoid(x)
    rank = w[f"dt_proj{end}.weight"].shape[1]
    states = w[log].shape[1]
    low, B, C = (x @ w[f"x_proj{end}.weight"].T).split([rank, states, states], dim=1)
    step = torch.log1p(torch.exp(low @ w[f"dt_proj{end}.weight"].T + w[f"dt_proj{end}.bias"]))
    return second_scan(x, step, -torch.exp(w[log]), B, C, w[f"D{end}"])


def second_norm(x, weight):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def bicubic(old, new):
    """(new, old) weights that resize a row: Keys' cubic (a = -1/2), widened by the scale where it shrinks, sums of one.

    Written out: torch's interpolation of a contiguous tensor is wrong where the width becomes 1 (2.15, on a CPU).
    """
    scale = old / new
    widened = max(scale, 1.0)
    middle = (torch.arange(new, dtype=torch.float64) + 0.5) * scale
    d = ((torch.arange(old, dtype=torch.float64) + 0.5)[None] - middle[:, None]).abs() / widened
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def second_vim(weights, image, stride, old_grid):
    """Released names, one image (C, H, W) -> logits. Positions of `old_grid` are resampled to the image's."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    image = image.double()
    patch = w["patch_embed.proj.weight"].shape[-1]
    grid = [(side - patch) // stride + 1 for side in image.shape[1:]]
    columns = F.unfold(image[None], patch, stride=stride)[0].T
    tokens = columns @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]

    pos, old = w["pos_embed"][0], old_grid[0] * old_grid[1]
    class_row = pos[old // 2]
    rest = torch.cat([pos[: old // 2], pos[old // 2 + 1 :]])
    if list(old_grid) != grid:
        rows, columns = bicubic(old_grid[0], grid[0]), bicubic(old_grid[1], grid[1])
        rest = torch.einsum("yh,xw,hwd->yxd", rows, columns, rest.view(*old_grid, -1)).flatten(0, 1)
    tokens = tokens + rest
    half = len(tokens) // 2
    x = torch.cat([tokens[:half], (w["cls_token"][0, 0] + class_row)[None], tokens[half:]])

    blocks = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("layers."))
    for i in range(blocks):
        mixer = {name.split(".mixer.")[1]: t for name, t in w.items() if name.startswith(f"layers.{i}.mixer.")}
        inner, gate = (second_norm(x, w[f"layers.{i}.norm.weight"]) @ mixer["in_proj.weight"].T).chunk(2, dim=1)
        gate = gate * torch.sigmoid(gate)
        forth = second_walk(mixer, inner, "") * gate
        back = second_walk(mixer, inner.flip(0), "_b").flip(0) * gate
        x = x + (forth + back) / 2 @ mixer["out_proj.weight"].T
    return w["head.weight"] @ second_norm(x, w["norm_f.weight"])[half] + w["head.bias"]


def released(path, weights):
    """A file as the authors publish them."""
    arguments = argparse.Namespace(model="vim", lr=5e-4, output_dir=None, dist_eval=True)
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 5e-4, "betas": (0.9, 0.999)}],
    }
    torch.save({"model": weights, "optimizer": optimizer, "epoch": 3, "scaler": {}, "args": arguments}, path)
    return str(path)


def from_file(name, path, **options):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options).eval()


@pytest.mark.parametrize("name, depth, size, stride, options", [
    ("vim_tiny_patch16_224", 3, (224, 224), 16, {}),
    ("vim_tiny_patch16_224", 3, (160, 288), 16, {}),  # an image of another size than the model holds positions for
    ("vim_tiny_patch16_224", 3, (160, 288), 16, {"img_size": (160, 288)}),
    ("vim_tiny_patch16_224", 2, (48, 16), 16, {}),
    ("vim_tiny_patch16_224", 3, (224, 224), 16, {"num_classes": 7}),
    ("vim_tiny_patch16_stride8_224", 2, (224, 224), 8, {}),
    ("vim_small_patch16_stride8_224", 2, (32, 40), 8, {}),
    ("vim_base_patch16_224", 1, (32, 64), 16, {}),
    pytest.param("vim_tiny_patch16_224", 24, (224, 224), 16, {}, marks=pytest.mark.slow),
])  # fmt: skip
@torch.no_grad()
def test_equals_the_second_vim(tmp_path, name, depth, size, stride, options):
    source = scatter(timm.create_model(name, depth=depth))
    weights = source.state_dict()
    model = from_file(name, released(tmp_path / "released.pth", weights), depth=depth, **options)
    if "num_classes" in options:  # the head starts anew
        assert len(model.head.weight) == 7
        weights = weights | {"head.weight": model.head.weight, "head.bias": model.head.bias}
    image = torch.randn(3, *size)
    truth = second_vim(weights, image, stride, source.grid)
    # The model computes in float32. Its roundings, 6e-8 each, add up at random over the blocks.
    assert relative(model(image[None])[0], truth) < 3e-6
    # In float64 there are none to speak of, but that timm resamples positions in float32.
    assert relative(model.double()(image[None].double())[0], truth) < (1e-12 if size == (224, 224) else 1e-7)


# The authors' numbers


@pytest.mark.shared
@pytest.mark.parametrize("file, stride, depth", [("patch16_64", 16, 3), ("patch16_stride8_64", 8, 2)])
def test_equals_the_authors(shared, file, stride, depth):
    golden = safetensors.torch.load_file(shared / "golden" / f"{file}.safetensors")
    model = Vim(img_size=64, stride=stride, num_classes=10, embed_dim=64, depth=depth)
    model.load_state_dict({k.removeprefix("weights."): v for k, v in golden.items() if k.startswith("weights.")})
    image = golden["image"].requires_grad_()
    logits = model(image)
    loss = F.cross_entropy(logits, golden["label"])
    loss.backward()
    # Theirs is float32 too, and 2e-7 off the equations in float64; so may ours be.
    assert relative(logits, golden["logits"]) < 1e-6
    assert abs(loss.item() - golden["loss"].item()) < 1e-6 * golden["loss"].item()
    assert relative(image.grad, golden["grad_image"]) < 5e-6  # float32, back through all blocks
    for name, parameter in model.named_parameters():
        # Sums over all tokens of two images, whose terms cancel: a few more roundings.
        assert relative(parameter.grad, golden[f"grad.{name}"]) < 5e-6, name
    assert sum(name.startswith("grad.") for name in golden) == len(list(model.parameters()))


@pytest.mark.parametrize("name, options, expected", [
    ("vim_tiny_patch16_224", {}, 7_148_008),
    ("vim_small_patch16_224", {}, 25_796_584),
    ("vim_base_patch16_224", {}, 97_598_440),
    ("vim_tiny_patch16_stride8_224", {}, 7_250_344),
    ("vim_tiny_patch16_224", {"direction": "none"}, 6_419_944),
    ("vim_tiny_patch16_224", {"direction": "ssm"}, 6_567_400),
])  # fmt: skip
def test_parameter_count(name, options, expected):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_nano_has_half_a_million_parameters():
    assert 450_000 < sum(p.numel() for p in timm.create_model("vim_nano_patch4_32").parameters()) < 600_000


def test_initialisation_is_the_published_one():
    """Positions and the head at 0.02; what each block adds is scaled by 1/sqrt(depth); logits start near zero."""
    model = Vim(depth=4, embed_dim=128, img_size=64)
    assert abs(model.pos_embed.std() - 0.02) < 0.002 and abs(model.cls_token.std() - 0.02) < 0.005
    assert abs(model.head.weight.std() - 0.02) < 0.001 and (model.head.bias == 0).all()
    assert (model.patch_embed.proj.bias == 0).all()
    # Linear's default is uniform within 1/sqrt(fan in), 256 here
    assert 0.95 < model.layers[0].mixer.out_proj.weight.abs().max() * math.sqrt(256) * math.sqrt(4) <= 1
    # LeCun: variance one over the fan in, 768; the truncated normal's is corrected by timm
    assert abs(model.patch_embed.proj.weight.std() * math.sqrt(768) - 1) < 0.02


# Released weights in another size


def file_of(tmp_path, **options):
    source = scatter(Vim(**{"embed_dim": 32, "depth": 1, **options}))
    return source.state_dict(), released(tmp_path / "released.pth", source.state_dict())


@pytest.mark.parametrize("options, patches", [
    ({}, 196),
    ({"img_size": 384}, 576),
    ({"img_size": (160, 288)}, 180),
    ({"img_size": (48, 80)}, 15),
    ({"stride": 8}, 729),
])  # fmt: skip
def test_the_class_token_s_row_stays_in_the_middle(tmp_path, options, patches):
    weights, path = file_of(tmp_path)
    model = Vim(embed_dim=32, depth=1, **options)
    model.load_pretrained(path)
    assert model.pos_embed.shape == (1, patches + 1, 32)
    assert torch.equal(model.pos_embed[:, patches // 2], weights["pos_embed"][:, 98])
    side = torch.cat([weights["pos_embed"][:, :98], weights["pos_embed"][:, 99:]], 1)
    rest = torch.cat([model.pos_embed[:, : patches // 2], model.pos_embed[:, patches // 2 + 1 :]], 1)
    rows, columns = bicubic(14, model.grid[0]), bicubic(14, model.grid[1])
    truth = torch.einsum("yh,xw,hwd->yxd", rows, columns, side.double().view(14, 14, 32)).flatten(0, 1)
    torch.testing.assert_close(rest[0].double(), truth, rtol=0, atol=5e-6)  # float32: twenty roundings of values near 2
    others = [name for name in weights if name != "pos_embed"]
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in others)


def test_a_head_for_another_class_count_starts_anew(tmp_path):
    weights, path = file_of(tmp_path)
    for count in (7, 0):
        model = Vim(embed_dim=32, depth=1, num_classes=count)
        before = {name: t.clone() for name, t in model.state_dict().items() if name.startswith("head.")}
        model.load_pretrained(path)
        assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
        assert torch.equal(model.norm_f.weight, weights["norm_f.weight"])


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_filters_for_another_number_of_channels(tmp_path, channels):
    """A grey image, its channel repeated, is embedded as the colour image of three such channels was."""
    _, path = file_of(tmp_path)
    three, other = Vim(embed_dim=32, depth=1).eval(), Vim(embed_dim=32, depth=1, in_chans=channels).eval()
    three.load_pretrained(path)
    other.load_pretrained(path)
    grey = torch.randn(1, 1, 224, 224)
    # Colours are weighed unequally where 3 does not divide the channels: only there is the grey image another one.
    if channels in (1, 6):
        # float32, another order of summation
        torch.testing.assert_close(
            other(grey.expand(-1, channels, -1, -1)), three(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
        )
    assert other.patch_embed.proj.weight.shape == (32, channels, 16, 16)
    assert (other.patch_embed.proj.weight != 0).any((0, 2, 3)).all()


# Every axis, forward and backward


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cls_token", CLASS_TOKENS)
@pytest.mark.parametrize("pool", ["token", "mean", "max"])
def test_every_variant_trains(direction, cls_token, pool):
    if pool == "token" and cls_token == "none":
        with pytest.raises(UserError, match="pool='token'"):
            small(direction=direction, cls_token=cls_token, pool=pool)
        return
    model = small(direction=direction, cls_token=cls_token, pool=pool)
    y = model(torch.randn(2, 3, 32, 32))
    assert y.shape == (2, 5)
    y.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    if cls_token in ("none", "middle"):  # at an end, a one-way walk reaches it last or not at all
        unused = {"cls_token"} if pool != "token" and direction == "layer" else set()
        assert all((p.grad != 0).any() for name, p in model.named_parameters() if name not in unused)


@pytest.mark.parametrize("cls_token, pool, expected", [
    ("middle", "token", lambda f: f[:, 8]),
    ("head", "token", lambda f: f[:, 0]),
    ("double", "token", lambda f: (f[:, 0] + f[:, 17]) / 2),
    ("middle", "mean", lambda f: (f[:, :8].sum(1) + f[:, 9:].sum(1)) / 16),
    ("double", "max", lambda f: f[:, 1:17].amax(1)),
    ("none", "mean", lambda f: f.mean(1)),
    ("none", "max", lambda f: f.amax(1)),
    ("head", "none", lambda f: f),
])  # fmt: skip
def test_what_goes_to_the_head(cls_token, pool, expected):
    model = small(cls_token=cls_token, pool=pool).double().eval()
    features = model.forward_features(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert features.shape == (2, 16 + {"none": 0, "double": 2}.get(cls_token, 1), 32)
    pooled = expected(features)
    # float64, two orders of summation
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled, rtol=0, atol=1e-14)
    torch.testing.assert_close(model.forward_head(features), model.head(pooled), rtol=0, atol=1e-14)


def test_pool_is_the_token_where_there_is_one():
    assert small().pool == "token" and small(cls_token="none").pool == "mean"
    with pytest.raises(UserError, match="pool='first'"):
        small(pool="first")


class Flipped(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x.flip(1)).flip(1)


def test_layer_walks_every_second_block_backward():
    layer, plain = small(direction="layer", depth=4).double(), small(direction="none", depth=4).double()
    plain.load_state_dict(layer.state_dict())
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert relative(layer(image), plain(image)) > 1e-6
    for i in (1, 3):
        plain.layers[i] = Flipped(plain.layers[i])
    assert relative(layer(image), plain(image)) < 1e-13  # float64, two orders of summation


@pytest.mark.parametrize(
    "cls_token, pool, side", [("middle", "token", 24), ("double", "token", 32), ("head", "max", 32)]
)
def test_sequence_turns_some_images_in_training_only(cls_token, pool, side):
    options = {"cls_token": cls_token, "pool": pool, "img_size": side, "direction": "sequence"}
    model = scatter(small(**options)).double()
    image = torch.randn(1, 3, side, side, dtype=torch.float64).expand(32, -1, -1, -1)
    forth = model.eval()(image[:1])
    assert torch.equal(model(image), model(image))
    backward = small(**options).double().eval()
    backward.load_state_dict(model.state_dict())
    for block in backward.layers:
        block.mixer.reverse = True
    back = backward(image[:1])
    got = model.train()(image)
    # float64, two orders of summation
    went_forth, went_back = (torch.isclose(got, way, rtol=0, atol=1e-12).all(1) for way in (forth, back))
    assert (went_forth ^ went_back).all()
    assert 4 <= went_back.sum() <= 28  # 16 on average, four standard deviations of 2.8 to either side


def test_sequence_without_turns_is_none():
    sequence, plain = small(direction="sequence").eval(), small(direction="none").eval()
    plain.load_state_dict(sequence.state_dict())
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(sequence(image), plain(image))


@pytest.mark.parametrize("channels", range(1, 17))
def test_any_number_of_channels(channels):
    assert small(in_chans=channels, depth=1)(torch.randn(1, channels, 32, 32)).shape == (1, 5)


def test_drop_path_rises_from_the_first_block_to_the_last():
    model = small(depth=3, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.layers]
    assert rates == pytest.approx([0, 0.2, 0.4])  # float32's rounding
    image = torch.randn(2, 3, 32, 32)
    assert relative(model(image), model(image)) > 1e-3
    assert torch.equal(model.eval()(image), model(image))


def test_dropout_before_the_head():
    model = small(drop_rate=0.5)
    pooled = model.train().forward_head(model.forward_features(torch.randn(4, 3, 32, 32)), pre_logits=True)
    assert 0.3 < (pooled == 0).double().mean() < 0.7  # 128 values at one half: four standard deviations are 0.18


@pytest.mark.parametrize("direction", ["ssm_conv", "sequence"])
def test_gradient_checkpointing_changes_no_gradient(direction):
    model, image = small(drop_path_rate=0.3, direction=direction), torch.randn(4, 3, 32, 32)
    calls = []
    model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients(enable):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        model(image).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients(False)
    assert len(calls) == 1
    again = gradients(True)
    assert len(calls) == 3  # forward, and once more in the backward
    assert all(torch.equal(a, b) for a, b in zip(plain, again))
    with torch.no_grad():
        model(image)
    assert len(calls) == 4


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (8, 8), (24, 40), (8, 80)])
def test_images_of_another_size(size):
    model = small()
    y = model(torch.randn(2, 3, *size))
    y.sum().backward()
    assert y.shape == (2, 5) and (model.pos_embed.grad != 0).any()


def test_a_size_that_does_not_divide():
    image = torch.randn(2, 3, 30, 37)
    with pytest.raises(ValueError, match=r"image 30x37 .* resize to 24x32 or 32x40, or pass pad=True"):
        small()(image)
    model = small(pad=True).eval()
    assert torch.equal(model(image), model(F.pad(image, (0, 3, 0, 2))))
    assert Vim(**{**SMALL, "img_size": (30, 37)}, pad=True).grid == (4, 5)
    with pytest.raises(ValueError, match="image 30x37"):
        small(img_size=(30, 37))


def test_one_image_does_not_see_another():
    model = small().double().eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    one_by_one = torch.cat([model(image[None]) for image in images])
    assert relative(model(images), one_by_one) < 1e-13  # float64, another order in matrix products


# Compilers and precisions


@pytest.mark.parametrize("options", [
    {"direction": "ssm", "depth": 1},
    pytest.param({}, marks=pytest.mark.slow),
    pytest.param({"direction": "layer", "cls_token": "double"}, marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_compile(options):
    model, image = small(**options), torch.randn(2, 3, 32, 32)
    model(image).square().sum().backward()
    eager = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(image).square().sum().backward()
    # float32; the compiler may add gradients up in another order
    assert all(relative(p.grad, g) < 1e-5 for p, g in zip(model.parameters(), eager))
    with torch.no_grad():
        other = torch.randn(2, 3, 32, 48)  # a resampled grid
        assert relative(compiled(other), model(other)) < 1e-6  # float32


def test_export():
    model, image = small().eval(), torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (image,))
    with torch.no_grad():
        assert relative(program.module()(image), model(image)) < 1e-6  # float32
    ops = [str(n.target).split(".")[1] for n in program.graph.nodes if str(n.target).startswith("longvision.")]
    assert ops == ["mixer"] * 2 + ["rms_norm"]  # two blocks, and what comes before the head


def test_export_without_kernels(monkeypatch):
    """The scans are nodes of their own: of two blocks, in two directions."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    model, image = small().eval(), torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (image,))
    with torch.no_grad():
        assert relative(program.module()(image), model(image)) < 1e-6  # float32
    assert sum(str(n.target).startswith("longvision.selective_scan") for n in program.graph.nodes) == 4


def test_bf16_autocast_is_near_float32():
    model, image = scatter(small(depth=6)), torch.randn(8, 3, 32, 32)
    truth = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(image)
        features = model.forward_features(image)
    # Six blocks of some ten roundings at 2**-9, of random sign, partly averaged out by the residual in float32.
    assert relative(y, truth.detach()) < 10 * 2**-8
    assert features.dtype == torch.float32
    y.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    model, image = scatter(small()), torch.randn(2, 3, 32, 32)
    truth = model(image).detach()
    y = model.to(dtype)(image.to(dtype))
    assert y.dtype == dtype
    assert relative(y, truth) < 10 * 2**-8  # as above; the weights are rounded too
    y.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == dtype for p in model.parameters())
    assert torch.isfinite(small().to(dtype)(torch.randn(1, 3, 48, 32).to(dtype))).all()  # positions resampled


def test_float64_is_float64_all_the_way():
    """Rounding anything to float32 on the way would leave 1e-8."""
    model = scatter(small()).double()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    assert model.forward_features(image).dtype == torch.float64
    truth = second_vim(model.state_dict(), image[0], 8, (4, 4))
    assert relative(model(image)[0], truth) < 1e-13  # float64


def test_the_residual_is_float32_under_bf16_weights():
    model = small().bfloat16()
    seen = []
    for block in model.layers:
        block.register_forward_hook(lambda _m, inputs, output: seen.extend([inputs[0].dtype, output.dtype]))
    model(torch.randn(1, 3, 32, 32).bfloat16())
    assert seen == [torch.float32] * 4


def test_it_learns():
    """Sixty steps tell light images from dark: the gradients point the right way."""
    torch.manual_seed(1)
    model = small(num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        label = torch.randint(2, (8,))
        image = 0.5 * torch.randn(8, 3, 32, 32) + (label[:, None, None, None] - 0.5)
        loss = F.cross_entropy(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.1  # a guess costs 0.69


def losses_of_a_run(steps=30):
    """Two blocks of width 32 learn the labels of random images."""
    torch.manual_seed(0)
    model = Vim(img_size=16, patch_size=4, embed_dim=32, depth=2, num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(3, (8,))
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_a_run_on_the_kernels_is_the_run_of_the_equations(monkeypatch):
    own = losses_of_a_run()
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    truth = losses_of_a_run()
    assert truth[-1] < 0.3 * truth[0]  # it learns: the curve is not flat
    # Float32: the first losses differ by a rounding or two. AdamW divides a gradient by its own size, so that where it
    # is small its rounding becomes a step of full length, and two runs drift apart as they go on: by 1e-7 in 30 steps.
    assert (own[:3] - truth[:3]).abs().max() < 3e-7
    assert (own - truth).abs().max() < 3e-6


def test_the_public_name():
    assert longvision.models.Vim is Vim


def test_export_with_a_dynamic_batch():
    model = Vim(img_size=16, patch_size=4, embed_dim=32, depth=2, num_classes=3).eval()
    dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=dynamic)
    x = torch.randn(5, 3, 16, 16)
    # The same operators in the same order; the reshaping of the batch may choose another matrix product.
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"depth": 0}, {"stride": 0}, {"stride": -4}, {"patch_size": 0}, {"img_size": 0}, {"drop_path_rate": 1.0}],
)
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Vim(**{"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, **arguments})


def test_a_frozen_position_stays_frozen_at_another_size():
    model = Vim(img_size=16, patch_size=4, embed_dim=32, depth=1)
    model.pos_embed.requires_grad_(False)
    model.set_input_size((16, 24))
    assert model.pos_embed.shape[1] == 25 and not model.pos_embed.requires_grad


def test_positions_of_several_models_at_once(monkeypatch):
    """vmap over the positions alone: the tokens that they are added to are those of one model."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    model = Vim(img_size=16, patch_size=4, embed_dim=16, depth=1, num_classes=3).eval()
    image, positions = torch.randn(2, 3, 16, 16), torch.randn(3, *model.pos_embed.shape)

    def call(pos_embed):
        return torch.func.functional_call(model, {"pos_embed": pos_embed}, image)

    with torch.no_grad():
        together = torch.func.vmap(call)(positions)
        torch.testing.assert_close(together, torch.stack([call(each) for each in positions]))
