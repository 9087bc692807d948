"""What timm's tools ask of a model, in numbers, of every Vim; test_contract.py asks it of all models."""

import copy
import pickle

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2

import longvision

NAMES = sorted(name for name in longvision.models.NAMES if name.startswith("vim"))
EVERY = pytest.mark.parametrize("name", NAMES)


def small(name, **options):
    """Two blocks and a small image, made as a user would."""
    patch = 4 if "patch4" in name else 16
    return timm.create_model(name, **{"depth": 2, "embed_dim": 32, "img_size": 4 * patch, **options}).eval()


def image_for(model, batch=2):
    stride, patch = model.patch_embed.stride, model.patch_embed.patch
    height, width = ((n - 1) * stride + patch for n in model.grid)
    return torch.randn(batch, model.in_chans, height, width)


def test_all_are_registered():
    assert NAMES == [
        "vim_base_patch16_224",
        "vim_nano_patch4_32",
        "vim_small_patch16_224",
        "vim_small_patch16_stride8_224",
        "vim_tiny_patch16_224",
        "vim_tiny_patch16_stride8_224",
    ]
    assert "vim_tiny_patch16_224.in1k" in timm.list_pretrained("vim_*")
    assert not timm.list_pretrained("vim_nano*")


@EVERY
@torch.no_grad()
def test_forward_is_features_then_head(name):
    model = small(name)
    image = image_for(model)
    features = model.forward_features(image)
    tokens = model.grid[0] * model.grid[1] + model.num_prefix_tokens
    assert features.shape == (2, tokens, model.num_features)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(image))
    assert torch.equal(model.get_classifier()(pooled), model(image))
    assert model(image).shape == (2, model.num_classes)
    assert model.num_classes == (10 if "nano" in name else 1000) == model.pretrained_cfg["num_classes"]


@EVERY
@torch.no_grad()
def test_reset_classifier(name):
    model = small(name)
    image = image_for(model)
    features, width = model.forward_features(image), model.num_features

    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), torch.nn.Identity) and model.num_classes == 0
    assert torch.equal(model(image), model.forward_head(features, pre_logits=True))
    model.reset_classifier(7)
    assert model(image).shape == (2, 7) and model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0, "")
    assert model.global_pool == "" and torch.equal(model(image), features)
    model.reset_classifier(0, "avg")
    assert model.global_pool == "avg"
    torch.testing.assert_close(model(image), model.tokens.extract(features)[0].mean(1), rtol=0, atol=0)
    model.reset_classifier(3, "token")
    assert model.global_pool == "token" and model(image).shape == (2, 3)
    assert model(image).abs().max() > 0 and features.shape[-1] == width


def test_a_new_head_is_where_the_model_is():
    model = small("vim_nano_patch4_32").to(torch.bfloat16)
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.bfloat16
    model = small("vim_nano_patch4_32").to("meta")
    model.reset_classifier(3)
    assert model.head.weight.device.type == "meta"


@EVERY
@torch.no_grad()
def test_a_backbone_without_head_or_pool(name):
    model = small(name, num_classes=0, global_pool="")
    image = image_for(model)
    assert torch.equal(model(image), model.forward_features(image))
    assert small(name, num_classes=0)(image).shape == (2, model.num_features)
    assert small(name, global_pool="avg").global_pool == "avg"


@EVERY
@torch.no_grad()
def test_forward_intermediates(name):
    model = small(name, depth=3)
    image, (rows, columns), width = image_for(model), model.grid, model.num_features
    truth = model.forward_features(image)

    final, maps = model.forward_intermediates(image)
    assert torch.equal(final, truth)
    assert [tuple(m.shape) for m in maps] == [(2, width, rows, columns)] * 3
    final, tokens = model.forward_intermediates(image, output_fmt="NLC", norm=True)
    assert [tuple(t.shape) for t in tokens] == [(2, rows * columns, width)] * 3
    assert torch.equal(tokens[-1], model.tokens.extract(truth)[0])  # the last, normalised, is the features

    _, with_prefix = model.forward_intermediates(image, norm=True, return_prefix_tokens=True, output_fmt="NLC")
    patches, prefix = with_prefix[-1]
    assert torch.equal(model.tokens.insert(patches, prefix), truth)
    assert torch.equal(prefix[:, 0], model.forward_head(truth, pre_logits=True))

    only = model.forward_intermediates(image, indices=2, intermediates_only=True)
    assert isinstance(only, list) and all(torch.equal(a, b) for a, b in zip(only, maps[1:], strict=True))
    for indices, expected in (
        ([0], [0]),
        ([0, 2], [0, 2]),
        ([-1], [2]),
        ([-3, 1], [0, 1]),
        (1, [2]),
        (None, [0, 1, 2]),
    ):
        taken = model.forward_intermediates(image, indices=indices, intermediates_only=True)
        assert all(torch.equal(a, maps[i]) for a, i in zip(taken, expected, strict=True)), indices

    both = model.forward_intermediates(image, output_dict=True, return_prefix_tokens=True)
    assert both.keys() == {"image_features", "image_intermediates", "image_intermediates_prefix"}
    assert torch.equal(both["image_features"], truth)
    assert [tuple(p.shape) for p in both["image_intermediates_prefix"]] == [(2, 1, width)] * 3
    assert model.forward_intermediates(image, output_dict=True, intermediates_only=True).keys() == {
        "image_intermediates"
    }
    for row in range(rows):  # a map holds its patches row by row
        assert torch.equal(maps[0][:, :, row].mT, model.tokens.extract(model.layers[0](model.embed(image)[0]))[0][
            :, row * columns : (row + 1) * columns
        ])  # fmt: skip


@EVERY
@torch.no_grad()
def test_stopping_early_runs_no_block_behind(name):
    model = small(name, depth=3)
    image, ran = image_for(model), []
    for i, block in enumerate(model.layers):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    early = model.forward_intermediates(image, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]
    late = model.forward_intermediates(image, indices=[0, 1], intermediates_only=True)
    assert ran == [0, 1, 0, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(early, late, strict=True))


def test_intermediates_of_an_unknown_format():
    model = small("vim_nano_patch4_32")
    with pytest.raises(ValueError, match="output_fmt='NHWC' is unknown: choose NCHW or NLC"):
        model.forward_intermediates(image_for(model), output_fmt="NHWC")


@pytest.mark.parametrize(
    "options", [{"cls_token": "none"}, {"cls_token": "double"}, {"direction": "sequence"}], ids=str
)
def test_intermediates_of_variants(options):
    model = small("vim_nano_patch4_32", **options).train()
    image = image_for(model)
    torch.manual_seed(4)
    truth = model.forward_features(image)
    torch.manual_seed(4)
    _, pairs = model.forward_intermediates(image, norm=True, output_fmt="NLC", return_prefix_tokens=True)
    if model.num_prefix_tokens:
        assert torch.equal(model.tokens.insert(*pairs[-1]), truth)
    else:
        assert torch.equal(pairs[-1], truth)  # no class tokens: no pairs, as in timm


@EVERY
@torch.no_grad()
def test_features_only(name):
    reference = small(name, depth=3)
    image = image_for(reference)
    default = small(name, depth=3, features_only=True)
    stride = reference.patch_embed.stride
    assert default.feature_info.channels() == [reference.num_features] * 3
    assert default.feature_info.reduction() == [stride] * 3
    assert default.feature_info.module_name() == ["layers.0", "layers.1", "layers.2"]
    assert [tuple(m.shape) for m in default(image)] == [(2, reference.num_features, *reference.grid)] * 3

    two = small(name, depth=3, features_only=True, out_indices=(0, 1))
    two.model.load_state_dict(reference.state_dict(), strict=False)
    truth = reference.forward_intermediates(image, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(two(image), truth, strict=True))
    assert len(two.model.layers) == 2 and list(two.feature_info.out_indices) == [0, 1]
    last = small(name, depth=3, features_only=True, out_indices=(-1,))
    assert len(last(image)) == 1 and last.feature_info.module_name() == ["layers.2"]


@EVERY
@torch.no_grad()
def test_set_input_size(name):
    model = small(name)
    stride, patch = model.patch_embed.stride, model.patch_embed.patch
    size = (patch + 5 * stride, patch + 2 * stride)
    image = torch.randn(2, 3, *size)
    truth = model(image)  # resampled at the call
    model.set_input_size(img_size=size)
    assert model.grid == (6, 3) and model.pos_embed.shape == (1, 19, model.num_features)
    assert isinstance(model.pos_embed, torch.nn.Parameter) and torch.equal(model(image), truth)
    model.set_input_size(4 * patch)
    assert model.grid[0] == model.grid[1]
    with pytest.raises(ValueError, match="does not divide"):
        model.set_input_size(4 * patch + 1)


@EVERY
def test_weight_decay_spares_what_it_should(name):
    model = small(name)
    spared, names = model.no_weight_decay(), {n for n, _ in model.named_parameters()}
    assert spared <= names
    assert {"pos_embed", "cls_token", "layers.0.mixer.A_log", "layers.1.mixer.A_b_log", "layers.1.mixer.D_b"} <= spared
    assert not any(n.endswith(("proj.weight", "head.weight", "conv1d.weight")) for n in spared)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    for n, p in model.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1 and n not in spared), n


@EVERY
def test_layer_decay(name):
    """The stem learns slowest, each block faster than the one before (the final norm with the last), then the head."""
    model = small(name, depth=3)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    scale = {n: scale.pop(id(p)) for n, p in model.named_parameters()}  # every one, once
    assert scale.pop("head.bias") == scale["head.weight"]
    by_layer = {}
    for n, factor in scale.items():
        stem = n.split(".")[0] in ("cls_token", "pos_embed", "patch_embed")
        n = "layers.2" if n.startswith("norm_f") else n
        by_layer.setdefault("stem" if stem else n[:8], set()).add(factor)
    assert all(len(factors) == 1 for factors in by_layer.values()), by_layer
    order = [by_layer[key].pop() for key in ("stem", "layers.0", "layers.1", "layers.2", "head.wei")]
    assert order == [0.5**k for k in (4, 3, 2, 1, 0)]


def test_layer_decay_of_two_class_tokens():
    model = small("vim_nano_patch4_32", cls_token="double")
    assert {"cls_token_head", "cls_token_tail", "pos_embed"} <= model.no_weight_decay()
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale[id(model.cls_token_tail)] == scale[id(model.cls_token_head)] == scale[id(model.pos_embed)] == 0.5**3


@EVERY
def test_grad_checkpointing(name):
    model = small(name).train()
    image = image_for(model)
    model(image).square().mean().backward()
    truth = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing(True)
    assert model.grad_checkpointing
    model(image).square().mean().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), truth))
    model.set_grad_checkpointing(enable=False)
    assert not model.grad_checkpointing


@EVERY
def test_pretrained_cfg(name):
    cfg = small(name).pretrained_cfg
    size = 32 if "nano" in name else 224
    with torch.device("meta"):
        whole = timm.create_model(name)
    assert cfg["input_size"] == (3, size, size)
    assert whole.grid == whole.patch_embed.grid_size(size, size)
    assert isinstance(whole.get_submodule(cfg["first_conv"]), torch.nn.Conv2d)
    assert whole.get_submodule(cfg["classifier"]) is whole.get_classifier()
    assert len(whole.layers) == (4 if "nano" in name else 24) and whole.patch_embed.patch == (
        4 if "nano" in name else 16
    )
    assert whole.patch_embed.stride == (8 if "stride8" in name else whole.patch_embed.patch)
    data = resolve_model_data_config(whole)
    assert data["input_size"] == (3, size, size) and data["interpolation"] == "bicubic"
    assert data["mean"] == cfg["mean"] and data["std"] == cfg["std"] and data["crop_pct"] == cfg["crop_pct"]


@EVERY
@torch.no_grad()
def test_prune_intermediate_layers(name):
    model = small(name, depth=4)
    image = image_for(model)
    truth = model.forward_intermediates(image, indices=[0, 2], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert len(model.layers) == 3 and isinstance(model.head, torch.nn.Identity)
    got = model.forward_intermediates(image, indices=[0, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))
    assert not isinstance(model.norm_f, torch.nn.Identity)
    assert model.prune_intermediate_layers(1, prune_norm=True, prune_head=False) == [2]
    assert isinstance(model.norm_f, torch.nn.Identity)


@EVERY
@torch.no_grad()
def test_copies_compute_the_same(name):
    model = small(name)
    image = image_for(model)
    truth = model(image)
    other = small(name)
    assert not torch.equal(other(image), truth)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(image), truth)
    assert torch.equal(copy.deepcopy(model)(image), truth)
    assert torch.equal(pickle.loads(pickle.dumps(model))(image), truth)
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()}  # the released names and no buffers


@EVERY
def test_in_chans_and_drop_rates_by_keyword(name):
    model = small(name, in_chans=1, drop_rate=0.1, drop_path_rate=0.2, num_classes=3)
    assert model(image_for(model)).shape == (2, 3) and model.head_drop.p == 0.1
    assert model.layers[-1].drop_path.drop_prob == pytest.approx(0.2)  # float32's rounding


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="dirction"):
        small("vim_nano_patch4_32", dirction="ssm")
