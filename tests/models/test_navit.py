"""NaViT: its parts as the paper names them, packed images each as if alone, and MONAI's on the same weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from longvision.errors import UserError
from longvision.layers.factorised import FACTORISED
from longvision.models.navit import NaViT
from longvision.models.weights.files import load_weights, save_weights
from longvision.types import PackedImages
from support.packed import check_as_alone

SIZES = (8, 12), (16, 16), (4, 4), (4, 28), (20, 8), (12, 12)  # pixels; tables hold rows and columns of 16
KEPT = [torch.tensor(numbers) for numbers in ([0, 2, 5], [3, 9, 10, 15], [0], [1, 2, 3, 4, 5, 6], [4], [0, 8])]


def small(**options):
    torch.manual_seed(1)
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 5}
    return NaViT(**{**shape, **options}).double()


def images(dtype=torch.float64):
    return [torch.randn(3, *size, dtype=dtype) for size in SIZES]


def shaken(model):
    """With scales of norms that are not all 1, and queries and keys that are not all small."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 2:
                parameter.mul_(10)
    return model


@pytest.mark.parametrize(
    "name, width, heads, parameters",
    [("tiny", 192, 3, 6_103_656), ("small", 384, 6, 23_706_216), ("base", 768, 12, 93_416_040)],
)
def test_the_variants(name, width, heads, parameters):
    with torch.device("meta"):
        model = timm.create_model(f"navit_{name}_patch16")
    assert (model.embed_dim, model.blocks[0].attn.num_heads, len(model.blocks)) == (width, heads, 12)
    assert model.pool == "map" and model.num_prefix_tokens == 0 and model.grid == (14, 14)
    block = 12 * width**2 + 2 * width + 2 * 64  # projections, MLP, norms, and those of queries and keys
    pooling = width + 12 * width**2 + width + 2 * 64
    rest = 768 * width + width + 2 * 14 * width + width + 1000 * (width + 1)
    assert sum(p.numel() for p in model.parameters()) == 12 * block + pooling + rest == parameters


@pytest.mark.parametrize("classes, told", [(5, "another pooling"), (3, "5 classes, the model 3"), (0, "")])
def test_a_file_for_another_pooling(tmp_path, caplog, classes, told):
    """The attention pooling is left out, and the head behind it starts anew, which is told."""
    source, model = small(), small(pool="mean", num_classes=classes)
    save_weights(source, tmp_path / "map.safetensors")
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, tmp_path / "map.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name.startswith("head") else source.state_dict())[name]), name
    found = [record.message.partition("head for ")[2].partition(": ")[0] for record in caplog.records]
    assert found == ([told] if told else [])
    save_weights(model, tmp_path / "mean.safetensors")
    with pytest.raises(UserError, match=r"mean\.safetensors is .*another model: .*attn_pool\.latent is missing"):
        load_weights(small(), tmp_path / "mean.safetensors")


def test_no_biases_but_the_embedding_s_and_the_classifier_s():
    names = [name for name, _ in small().named_parameters()]
    assert [name for name in names if name.endswith("bias")] == ["patch_embed.proj.bias", "head.bias"]


def test_a_plain_restatement():
    """The model's equations, written out for one image."""
    model, image = shaken(small()), torch.randn(1, 3, 8, 12, dtype=torch.float64)
    rows, columns = model.pos_embed.rows[:2], model.pos_embed.columns[:3]
    x_MD = model.patch_embed(image)[0] + (rows[:, None] + columns).flatten(0, 1)

    def normed(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        return norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def mixed(q_ND, k_MD, v_MD, attention):
        outputs = []
        for head in range(2):
            q, k, v = (x[:, 8 * head : 8 * head + 8] for x in (q_ND, k_MD, v_MD))
            q, k = normed(q, attention.q_norm), normed(k, attention.k_norm)
            outputs.append((q @ k.T / 8**0.5).softmax(-1) @ v)
        return torch.cat(outputs, dim=1) @ attention.proj.weight.T

    def mlp(x, module):
        return F.gelu(x @ module.fc1.weight.T) @ module.fc2.weight.T

    for block in model.blocks:
        x_MD = x_MD + mixed(*(normed(x_MD, block.norm1) @ block.attn.qkv.weight.T).split(16, dim=1), block.attn)
        x_MD = x_MD + mlp(normed(x_MD, block.norm2), block.mlp)
    pool, x_MD = model.attn_pool, normed(x_MD, model.norm)
    y_1D = mixed(pool.latent[0] @ pool.q.weight.T, *(x_MD @ pool.kv.weight.T).split(16, dim=1), pool)
    y_1D = y_1D + mlp(normed(y_1D, pool.norm), pool.mlp)
    truth = y_1D @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(image), truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kept", [None, KEPT], ids=["whole", "dropped"])
@pytest.mark.parametrize(
    "options",
    [{"positions": positions} for positions in ("absolute", *FACTORISED)] + [{"cls_token": "double"}, {"pool": "mean"}],
    ids=lambda options: next(iter(options.values())),
)
def test_each_image_as_if_alone(options, kept):
    model, several = shaken(small(**options)), images()
    if kept is None:
        alone = [image[None] for image in several]
    else:
        alone = [PackedImages.from_images([image], 4, kept=[own]) for image, own in zip(several, kept, strict=True)]
    check_as_alone(model, PackedImages.from_images(several, 4, kept=kept), alone)


def test_in_float32():
    """To the 1e-5 that packing promises, with checkpointing too."""
    model, several = small().float(), images(torch.float32)
    model.set_grad_checkpointing()
    packed = model(PackedImages.from_images(several, 4))
    torch.testing.assert_close(packed, torch.cat([model(image[None]) for image in several]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_in_bfloat16(packed):
    """Autocast and weights of that type: queries, keys and values meet in one."""
    model, several = small().float(), images(torch.float32)
    given = PackedImages.from_images(several, 4) if packed else several[1][None]
    truth = model(given)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(given)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), truth, rtol=0.05, atol=0.02)
    in_half = given.with_patches(given.patches.bfloat16()) if packed else given.bfloat16()
    torch.testing.assert_close(model.bfloat16()(in_half).float(), truth, rtol=0.05, atol=0.02)


def test_the_head_takes_features_of_packed_images():
    model, packed = small(), PackedImages.from_images(images(), 4)
    torch.testing.assert_close(model.forward_head(model.forward_features(packed), images=packed), model(packed))


def test_the_pooling_goes_with_the_head():
    """A parameter without a gradient stops distributed training."""
    model, image = small(), images()[0][None]
    assert "attn_pool.latent" in model.no_weight_decay()
    model.reset_classifier(3, "avg")
    assert model.attn_pool is None and "attn_pool.latent" not in model.no_weight_decay()
    model.reset_classifier(3, "map")
    assert model(image).shape == (1, 3) and model.attn_pool.latent.dtype == torch.float64
    model.prune_intermediate_layers(1)
    assert model.attn_pool is None and model.pool == "none"
    pyramid = timm.create_model("navit_tiny_patch16_pyramid", depth=1, embed_dim=16)
    assert not any("attn_pool" in name or "head" in name for name, _ in pyramid.named_parameters())


def test_what_raises():
    with pytest.raises(UserError, match=r"num_heads 3 .*embed_dim 16"):
        small(num_heads=3)
    with pytest.raises(UserError, match="num_heads 0"):
        small(num_heads=0)
    with pytest.raises(UserError, match=r"token.*map, mean, max, none"):
        small(pool="token")


@pytest.mark.slow
def test_compiled_and_exported_it_is_the_same():
    model, several = small(depth=1), images()
    packed = PackedImages.from_images(several, 4)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed), model(packed), rtol=1e-11, atol=1e-12)
    image = several[1][None]
    exported = torch.export.export(model, (image,))
    torch.testing.assert_close(exported.module()(image), model(image), rtol=1e-11, atol=1e-12)


# Against MONAI's


def monai_s(model):
    """MONAI 1.6.1's with the weights of ours.

    What it defines otherwise is taken out: norms around the patch embedding and before the classifier, and what the
    pooling adds. Its pooling normalises its query, 0 here, to that norm's bias, which is our query; ours has an MLP,
    whose last weights are 0. Its queries and keys are not centred in a head, so that ours come with a mean of 0. A row
    or column beyond its table has the last entry: none is here.
    """
    nets = pytest.importorskip("monai.networks.nets", reason="monai is not installed")
    shape = {"hidden_size": 16, "mlp_dim": 64, "num_layers": 2, "num_heads": 2}
    theirs = nets.NaViT(28, 4, 5, in_channels=3, spatial_dims=2, **shape).double()
    theirs.to_patch_embedding[0] = theirs.to_patch_embedding[2] = theirs.mlp_head[0] = nn.Identity()
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    weights = {
        "attn_pool_query": torch.zeros(16),
        "to_patch_embedding.1.weight": model.patch_embed.proj.weight.flatten(1),
        "to_patch_embedding.1.bias": model.patch_embed.proj.bias,
        "pos_embed_axes.0": model.pos_embed.rows,
        "pos_embed_axes.1": model.pos_embed.columns,
        "norm.weight": model.norm.weight,
        "mlp_head.1.weight": model.head.weight,
        "attn_pool.norm.weight": torch.ones(16),
        "attn_pool.norm.bias": model.attn_pool.latent[0, 0],
        **attention("attn_pool", [model.attn_pool.q.weight, *model.attn_pool.kv.weight.chunk(2)], model.attn_pool),
    }
    for i, block in enumerate(model.blocks):
        weights |= {
            f"blocks.{i}.attn.norm.weight": block.norm1.weight,
            f"blocks.{i}.norm.weight": block.norm2.weight,
            f"blocks.{i}.mlp.linear1.weight": block.mlp.fc1.weight,
            f"blocks.{i}.mlp.linear2.weight": block.mlp.fc2.weight,
            **attention(f"blocks.{i}.attn", block.attn.qkv.weight.chunk(3), block.attn),
        }
    missing, unknown = theirs.load_state_dict(weights, strict=False)
    assert not unknown and all(name.endswith("bias") for name in missing)
    assert not any(theirs.get_parameter(name).any() for name in missing)
    return theirs.eval()


def attention(name, qkv, ours):
    weights = {f"{name}.to_{word}.weight": weight for word, weight in zip("qkv", qkv, strict=True)}
    scales = {f"{name}.{word}.gamma": getattr(ours, word).weight.expand(2, 1, 8) for word in ("q_norm", "k_norm")}
    return {**weights, **scales, f"{name}.out_proj.weight": ours.proj.weight}


@torch.no_grad()
def test_monai_s_on_the_same_weights():
    model = shaken(small(img_size=28)).eval()
    for module in model.modules():
        if hasattr(module, "q_norm"):
            module.q_norm.eps = module.k_norm.eps = 0.0
    for weight in (*(block.attn.qkv.weight[:32] for block in model.blocks), model.attn_pool.q.weight,
                   model.attn_pool.kv.weight[:16]):  # fmt: skip
        by_head = weight.unflatten(0, (-1, 8))
        by_head -= by_head.mean(1, keepdim=True)
    model.attn_pool.mlp.fc2.weight.zero_()
    several = images()
    truth = monai_s(model)([several[:4], several[4:]])
    torch.testing.assert_close(model(PackedImages.from_images(several, 4)), truth, rtol=1e-11, atol=1e-12)
    assert truth.std() > 0.1  # or the comparison says little
