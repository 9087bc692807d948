"""DeepViT against the authors' published code (golden files) and a restatement of the equations."""

import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint

from longvision.errors import UserError
from longvision.explain.attention import watched_attention
from longvision.layers.re_attention import HeadMixing, MapNorm, ReAttention
from longvision.models.backbone import create_backbone
from longvision.models.deepvit import DeepViT

GOLDEN = ["deepvit_plain_32", "deepvit_s_cnn_24", "deepvit_scaled_plain_40x24"]
TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 4, "num_classes": 5}
VARIANTS = [
    {},
    {"re_attention": 1},
    {"re_attention": 2, "rescale": True, "scale": 0.5, "stem": "conv"},
    {"re_attention": 0, "scale": 0.5},
]


def golden(shared, name):
    """-> the authors' arguments as ours, and the file's tensors."""
    path = shared / "golden" / "backbones" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no dictionary
        config = json.loads(file.metadata()["config"])
    names = ("img_size", "patch_size", "embed_dim", "num_heads", "mlp_ratio", "num_classes")
    ours = {key: config[key] for key in names} | {"depth": len(config["depth"])}
    ours |= {"re_attention": sum(config["apply_transform"]), "scale": config.get("scale_adjustment", 1)}
    ours |= {"rescale": config.get("transform_scale", False)}
    return ours | {"stem": "conv" if config.get("use_cnn_embed") else "linear"}, tensors


def weights_of(tensors):
    return {key.removeprefix("weights."): tensor for key, tensor in tensors.items() if key.startswith("weights.")}


def scattered(**options):
    """Weights and running statistics away from their defaults."""
    model = DeepViT(**{**TINY, **options}).double()
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(
                torch.rand_like(tensor) + 0.5 if key.endswith("running_var") else 0.3 * torch.randn_like(tensor)
            )
    return model


def by_the_equations(model, weights, images, training):
    """The published equations, with s where it stands there, on weights by name; float64."""
    s, heads = model.blocks[0].scale, model.blocks[0].attn.num_heads

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def batch_norm(x, name):  # over all but dimension 1
        others = (0, 2, 3)
        mean = x.mean(others) if training else weights[f"{name}.running_mean"]
        var = x.var(others, unbiased=False) if training else weights[f"{name}.running_var"]
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"].view(shape) + weights[f"{name}.bias"].view(shape)

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = images
    patch = 4
    if "patch_embed.conv1.weight" in weights:
        x = batch_norm(F.conv2d(x, weights["patch_embed.conv1.weight"], stride=2, padding=3), "patch_embed.bn1").relu()
        x = batch_norm(F.conv2d(x, weights["patch_embed.conv2.weight"], padding=1), "patch_embed.bn2").relu()
        patch //= 2
    x = F.conv2d(x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], 1) + weights["pos_embed"]
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        y = norm(s * x, f"{name}.norm1", 1e-6)
        q, k, v = linear(y, f"{name}.attn.qkv").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        if f"{name}.attn.reatten_matrix.weight" in weights:
            theta = weights[f"{name}.attn.reatten_matrix.weight"][:, :, 0, 0]
            attention = torch.einsum("gh,bhij->bgij", theta, attention)
            attention = attention + weights[f"{name}.attn.reatten_matrix.bias"].view(1, -1, 1, 1)
            attention = batch_norm(attention, f"{name}.attn.var_norm")
            attention = attention * (q.shape[-1] ** -0.5 if block.attn.map_scale != 1 else 1)
        y = (attention @ v).transpose(1, 2).flatten(2)
        x = x + linear(y, f"{name}.attn.proj") / s
        y = F.gelu(linear(norm(s * x, f"{name}.norm2", 1e-6), f"{name}.mlp.fc1"))
        x = x + linear(y, f"{name}.mlp.fc2") / s
    return linear(norm(x, "norm", 1e-6)[:, 0], "head")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_published_equations(options, training):
    """Values and every gradient, in float64; in training the batch's own statistics."""
    model, images = scattered(**options).train(training), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    weights = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    with torch.no_grad():
        before = {key: tensor.clone() for key, tensor in weights.items()}
    truth = by_the_equations(model, weights, images, training)
    chosen = torch.randn_like(truth)
    expected = torch.autograd.grad((truth * chosen).sum(), list(model.parameters()))
    got = model(images)
    torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-10)
    found = torch.autograd.grad((got * chosen).sum(), list(model.parameters()))
    for (key, _), a, b in zip(model.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    moved = {key for key, tensor in weights.items() if not torch.equal(tensor, before[key])}
    norms = {key.rpartition(".")[0] for key in weights if key.endswith("running_var")} if training else set()
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"{name}.{buffer}" for name in norms for buffer in buffers}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_authors_code(name, shared, tmp_path):
    """Logits, loss, maps and every gradient, from a file as theirs are; float32 in another order."""
    options, tensors = golden(shared, name)
    path = tmp_path / "released.pth"
    released = {f"module.{key}": tensor for key, tensor in weights_of(tensors).items()}
    torch.save({"state_dict": released, "epoch": 3, "arch": "deepvit"}, path)
    model = timm.create_model("deepvit_16", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **options)
    model.eval()
    image, maps = tensors["image"].clone().requires_grad_(), {}
    with watched_attention(model, maps.__setitem__):
        logits = model(image)
    loss = F.cross_entropy(logits, tensors["label"])
    torch.testing.assert_close(logits, tensors["logits"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, tensors["loss"], rtol=1e-5, atol=1e-6)
    for number, map_BHMM in maps.items():
        truth = tensors[f"act.blocks.{number}.attention"]
        torch.testing.assert_close(map_BHMM, truth, rtol=1e-4, atol=1e-5)
    loss.backward()
    expected = {key.removeprefix("grad."): tensor for key, tensor in tensors.items() if key.startswith("grad.")}
    assert expected.keys() == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-4, atol=1e-5 * scale, msg=key)
    torch.testing.assert_close(image.grad, tensors["grad_image"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", GOLDEN[:1])
def test_released_files_load_strictly(name, shared, tmp_path):
    options, tensors = golden(shared, name)
    weights = weights_of(tensors)
    del weights["blocks.1.attn.var_norm.running_var"]
    torch.save({"state_dict_ema": weights}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.var_norm\.running_var is missing"):
        create_backbone("deepvit_16", 10, 3, (32, 32), str(tmp_path / "short.pth"), {
            key: value for key, value in options.items() if key not in ("img_size", "num_classes")
        })  # fmt: skip


@pytest.mark.parametrize(
    "name, parameters",
    {
        "deepvit_16": 24_426_664,
        "deepvit_24": 36_261_448,
        "deepvit_32": 48_096_232,
        "deepvit_s": 27_312_632,
        "deepvit_l": 58_883_708,
        "deepvit_l_384": 59_043_308,
    }.items(),
)
def test_as_many_parameters_as_published(name, parameters):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with_it = [isinstance(block.attn, ReAttention) for block in model.blocks]
    last = {"deepvit_s": 5, "deepvit_l": 12, "deepvit_l_384": 12}.get(name, len(with_it))
    assert with_it == [False] * (len(with_it) - last) + [True] * last


def even_maps():
    """Re-attention and tokens whose maps are even: the normalisation takes nearly everything away from them."""
    return ReAttention(32, 4).train(), 0.05 * torch.randn(2, 200, 32)


@pytest.mark.parametrize("kind", ["autocast", "bfloat16", "float16", "bfloat16 in autocast"])
def test_maps_are_mixed_and_normalised_in_float32(kind):
    """Half precision would leave rounding."""
    (attention, x), seen = even_maps(), {}
    attention.attn_drop.register_forward_hook(lambda _, __, y: seen.update(out=y))
    with torch.no_grad():
        attention(x)
        truth = seen["out"]
        half = torch.float16 if kind == "float16" else torch.bfloat16
        if kind != "autocast":
            attention, x = attention.to(half), x.to(half)
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in kind):
            out = attention(x)
    assert out.dtype == half and seen["out"].dtype == torch.float32
    kept = F.cosine_similarity(seen["out"].flatten(), truth.flatten(), dim=0)
    assert kept > 0.99  # what queries and keys in bfloat16 leave


def test_half_precision_keeps_running_statistics_and_gradients():
    """They are updated as in float32, each step rounded to the dtype that they are in."""
    (attention, x), found = even_maps(), []
    for dtype in (torch.float32, torch.bfloat16):
        own = copy.deepcopy(attention).to(dtype)
        for _ in range(3):
            own(x.to(dtype)).sum().backward()
        norm = own.var_norm
        assert {t.dtype for t in (norm.running_mean, norm.running_var, norm.weight.grad)} == {dtype}
        assert norm.num_batches_tracked == 3 and norm.running_mean.abs().min() > 0
        found.append(norm)
    for name in ("running_mean", "running_var"):
        a, b = (getattr(norm, name).float() for norm in found)
        torch.testing.assert_close(b, a, rtol=0.02, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_computed_again_counts_once(dtype, reentrant):
    norm, image = MapNorm(3).to(dtype), torch.randn(2, 3, 4, 4, requires_grad=True)
    other = copy.deepcopy(norm)
    first = torch.autograd.grad(other(image).square().sum() + other(image).sum(), [image, *other.parameters()])
    again = checkpoint(lambda x: norm(x).square().sum() + norm(x).sum(), image, use_reentrant=reentrant)
    again.backward()
    for (name, a), (_, b) in zip(norm.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(first, [image.grad, *(p.grad for p in norm.parameters())], strict=True):
        torch.testing.assert_close(b, a)


def test_a_model_that_saves_only_the_inputs_of_its_blocks():
    model = DeepViT(**TINY).train()
    other, images = copy.deepcopy(model), torch.randn(2, 3, 16, 16)
    other.set_grad_checkpointing()
    for one in (model, other):
        one(images).square().sum().backward()
    for (name, a), (_, b) in zip(model.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_mean_over_all_batches():
    """As torch.optim.swa_utils.update_bn asks for it."""
    norm, other = MapNorm(3, momentum=None), torch.nn.BatchNorm2d(3, momentum=None)
    for x in torch.randn(3, 2, 3, 4, 4):
        torch.testing.assert_close(norm(x), other(x))
    torch.testing.assert_close(norm.state_dict(), other.state_dict())


def test_synchronised_batch_norms_leave_the_maps_in_float32():
    """Lightning's sync_batchnorm puts others in the place of torch's; a device has M² entries of an image's maps."""
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(DeepViT(**TINY, stem="conv"))
    assert isinstance(model.patch_embed.bn1, torch.nn.SyncBatchNorm)
    assert all(type(block.attn.var_norm) is MapNorm for block in model.blocks)


def test_in_timm_s_transformers():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, attn_layer=ReAttention)
    assert sum(isinstance(module, HeadMixing) for module in model.modules()) == 2
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"num_heads": 3}, "num_heads 3"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"re_attention": -1}, "re_attention -1"),
        ({"re_attention": 4}, "re_attention 4.* 3 blocks"),
        ({"depth": 0, "re_attention": 0}, "depth 0"),
        ({"scale": 0}, "scale 0"),
        ({"stem": "convolution"}, "stem='convolution'"),
        ({"stem": "conv", "patch_size": 5, "img_size": 15}, "patch_size"),
        ({"stem": "conv", "stride": 2}, "stride"),
        ({"img_size": 18}, "18x18"),
    ],
    ids=str,
)
def test_what_raises(options, expected):
    with pytest.raises(UserError, match=expected):
        DeepViT(**{**TINY, **options})


@torch.no_grad()
def test_another_size_and_padding():
    model = scattered(stem="conv", pad=True).eval()
    image = torch.randn(1, 3, 15, 22, dtype=torch.float64)
    assert torch.equal(model(image), model(F.pad(image, (0, 2, 0, 1))))
    with pytest.raises(UserError, match="15x22"):
        scattered(stem="conv").eval()(image)


@pytest.mark.slow
@pytest.mark.parametrize("options", VARIANTS[1:3], ids=str)
def test_graphs(options):
    """torch.compile, torch.export and torch.fx give what the model gives; float64."""
    model, image = scattered(**options).eval(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    truth = model(image)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for other in (compiled, torch.export.export(model, (image,)).module(), torch.fx.symbolic_trace(model)):
        torch.testing.assert_close(other(image), truth, rtol=1e-10, atol=1e-11)
    with torch.autocast("cpu", torch.bfloat16):
        half = DeepViT(**TINY, **options).eval()
        torch._dynamo.reset()
        compiled, images = torch.compile(half, fullgraph=True, backend="aot_eager"), torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(compiled(images), half(images), rtol=0.05, atol=0.05)
