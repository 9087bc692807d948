"""timm's vision transformers as they are used here: sizes, logits, another resolution, a head of zeros."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from longvision.errors import UserError
from longvision.models.backbone import create_backbone
from longvision.models.weights.files import save_weights

NAME = "vit_base_patch16_224.orig_in21k"
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_224", 86_567_656),
        pytest.param("vit_base_r50_s16_384", 98_950_952, marks=pytest.mark.slow),
        ("deit_tiny_patch16_224", 5_717_416),
    ],
)
def test_parameters(name: str, expected: int):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_logits_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    ours = timm.create_model("vit_base_patch16_224", img_size=(32, 48), num_classes=5, **SMALL).eval()
    for parameter in ours.parameters():  # as they begin, a wrong order of biases and norms would not show
        torch.nn.init.normal_(parameter, std=0.2)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, layer_norm_eps=1e-6,
        image_size=(32, 48), patch_size=16, num_labels=5,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(config).eval()
    theirs.load_state_dict(as_transformers(ours.state_dict()))
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images).logits)


def as_transformers(weights):
    """timm's names and its queries, keys and values in one, as transformers has them."""
    names = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    found = {}
    for name, weight in weights.items():
        stem, _, kind = name.rpartition(".")
        if not stem:
            found[names[name]] = weight
        elif stem in names:
            found[f"{names[stem]}.{kind}"] = weight
        else:
            _, block, part = stem.split(".", 2)
            parts = zip("qkv", weight.chunk(3), strict=True) if part == "attn.qkv" else [("", weight)]
            for letter, one in parts:
                own = f"attention.{letter}_proj" if letter else names[part]
                found[f"vit.layers.{block}.{own}.{kind}"] = one
    return found


def written(path, name=NAME, classes=0, **args):
    """Random weights of a small one at 224 pixels, as a file without a description."""
    model = timm.create_model(name, num_classes=classes, **{**SMALL, **args})
    torch.nn.init.normal_(model.pos_embed)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, path)
    return weights


def test_another_resolution_resamples_the_positions_of_the_patches_alone(tmp_path):
    weights = written(tmp_path / "small.safetensors")
    model = create_backbone(NAME, 10, 3, (384, 320), str(tmp_path / "small.safetensors"), SMALL)
    class_11D, patches_1MD = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    assert torch.equal(class_11D, weights["pos_embed"][:, :1])
    map_1DHW = weights["pos_embed"][:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(map_1DHW, (24, 20), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches_1MD, expected)
    for name in set(weights) - {"pos_embed"}:
        assert torch.equal(model.state_dict()[name], weights[name]), name


@pytest.mark.parametrize("name", [NAME, "deit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(64, 144), (96, 96), (80, 80), (144, 64)])
def test_positions_of_a_run_that_was_not_square(tmp_path, name, size):
    """64x144 pixels have as many patches as 96x96, whose positions they are not."""
    run = str(tmp_path / "run.safetensors")
    trained = create_backbone(name, 3, 3, (64, 144), args=SMALL)
    torch.nn.init.normal_(trained.pos_embed)
    save_weights(trained, run, {"classes": ["a", "b", "c"], "preprocess": {"channels": 3, "size": [64, 144]}})
    model = create_backbone(name, 3, 3, size, run, SMALL)
    assert torch.equal(model.pos_embed[:, :1], trained.pos_embed[:, :1])
    map_1DHW = trained.pos_embed.detach()[:, 1:].reshape(1, 4, 9, -1).permute(0, 3, 1, 2)
    grid = (size[0] // 16, size[1] // 16)
    expected = F.interpolate(map_1DHW, grid, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.pos_embed.detach()[:, 1:], expected)
    assert torch.equal(model.head.weight, trained.head.weight)


def test_a_hybrid_s_run_that_was_not_square_goes_on_at_its_size_alone(tmp_path):
    run, name = str(tmp_path / "run.safetensors"), "vit_tiny_r_s16_p8_224"
    trained = create_backbone(name, 3, 3, (128, 512), args=SMALL)
    save_weights(trained, run, {"classes": ["a", "b", "c"], "preprocess": {"channels": 3, "size": [128, 512]}})
    with pytest.raises(UserError, match=r"run\.safetensors.*128x512"):
        create_backbone(name, 3, 3, (256, 256), run, SMALL)
    model = create_backbone(name, 3, 3, (128, 512), run, SMALL)
    assert torch.equal(model.pos_embed, trained.pos_embed)


def test_a_square_run_goes_on_at_any_size(tmp_path):
    run = str(tmp_path / "run.safetensors")
    trained = create_backbone(NAME, 3, 3, (64, 64), args=SMALL)
    save_weights(trained, run, {"classes": ["a", "b", "c"], "preprocess": {"channels": 3, "size": [64, 64]}})
    model = create_backbone(NAME, 3, 3, (96, 48), run, SMALL)
    assert model.patch_embed.grid_size == (6, 3) and torch.equal(model.pos_embed[:, 0], trained.pos_embed[:, 0])
    assert torch.equal(model.head.weight, trained.head.weight)


@pytest.mark.parametrize("name", [NAME, "deit_tiny_patch16_224", "vit_tiny_r_s16_p8_224"])
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_new_head_of_zeros_begins_with_logits_of_zero(tmp_path, name, pretrained):
    """Of as many classes in the file as the name's weights have, 1000 or none; 7 here."""
    if pretrained:
        written(tmp_path / "small.safetensors", name, 0 if name == NAME else 1000)
    file = str(tmp_path / "small.safetensors") if pretrained else False
    model = create_backbone(name, 7, 3, (64, 64), file, {**SMALL, "weight_init": "jax"})
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7) and not logits.any()
    logits.sum().backward()
    assert model.head.weight.grad.any()


def test_the_authors_own_file(tmp_path):
    """.npz of JAX: kernels the other way round, a class more or less than here."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls": (1, 1, 32), "embedding/kernel": (16, 16, 3, 32), "embedding/bias": (32,),
        "Transformer/posembed_input/pos_embedding": (1, 197, 32), "Transformer/encoder_norm/scale": (32,),
        "Transformer/encoder_norm/bias": (32,), "head/kernel": (32, 21843), "head/bias": (21843,),
    }  # fmt: skip
    for block in range(2):
        at = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{at}/{norm}/scale": (32,), f"{at}/{norm}/bias": (32,)}
        attention = f"{at}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (32, 4, 8), f"{attention}/{part}/bias": (4, 8)}
        shapes |= {f"{attention}/out/kernel": (4, 8, 32), f"{attention}/out/bias": (32,)}
        for layer, wide in (("Dense_0", (32, 128)), ("Dense_1", (128, 32))):
            shapes |= {f"{at}/MlpBlock_3/{layer}/kernel": wide, f"{at}/MlpBlock_3/{layer}/bias": wide[1:]}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "ViT.npz", **arrays)
    model = create_backbone(NAME, 10, 3, (224, 224), str(tmp_path / "ViT.npz"), {**SMALL, "weight_init": "jax"})
    fc1 = arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"]
    assert torch.equal(model.blocks[1].mlp.fc1.weight, torch.from_numpy(fc1.T))
    assert torch.equal(model.pos_embed, torch.from_numpy(arrays["Transformer/posembed_input/pos_embedding"]))
    assert not model(torch.randn(1, 3, 224, 224)).any()


@pytest.mark.parametrize("name", ["resnet10t", "vim_nano_patch4_32", NAME])
def test_an_npz_that_is_not_the_model_s_is_told(tmp_path, name):
    np.savez(tmp_path / "other.npz", **{"embedding/kernel": np.zeros((16, 16, 3, 7), np.float32)})
    args = SMALL if name == NAME else None
    with pytest.raises(UserError, match=r"other\.npz"):
        create_backbone(name, 7, 3, (32, 32), str(tmp_path / "other.npz"), args)


def test_a_size_that_a_hybrid_cannot_take_is_told():
    with pytest.raises(UserError, match=r"vit_tiny_r_s16_p8_224.*100x100"):
        create_backbone("vit_tiny_r_s16_p8_224", 7, 3, (100, 100), args=SMALL)
