"""EfficientViT with fewer channels: what the whole model gives with the others at zero, and timm's contract."""

import copy

import pytest
import timm
import torch

from longvision.errors import UserError
from longvision.models.backbone import create_backbone, create_features
from longvision.models.pruned_efficientvit import check_widths, full_widths, sliced
from longvision.models.weights.files import save_weights
from support.efficientvits import SMALL, make


def some_channels(model, seed=1):
    """Of each layer any number of channels, at least one."""
    generator = torch.Generator().manual_seed(seed)

    def some(count):
        few = int(torch.randint(1, count + 1, (), generator=generator))
        return torch.randperm(count, generator=generator)[:few].sort()[0]

    return {name: [some(count) for count in counts] for name, counts in full_widths(model).items()}


@torch.no_grad()
def masked(model, kept):
    """The whole model with all other channels at zero, by their norms: of queries behind their convolution."""
    model = copy.deepcopy(model)
    full = full_widths(model)
    for name, left in kept.items():
        if len(left) == 1:
            norms = [(model.get_submodule(name).pw1.bn, 0, left[0], full[name][0])]
        else:
            place, head = name.split(".qkvs.")
            attention, (key, value) = model.get_submodule(place), full[name]
            norms = [
                (attention.dws[int(head)].bn, 0, left[0], key),
                (attention.qkvs[int(head)].bn, 2 * key, left[1], value),
            ]
        for norm, begin, stay, count in norms:
            gone = torch.ones(count, dtype=torch.bool)
            gone[stay] = False
            norm.weight[begin : begin + count][gone] = 0
            norm.bias[begin : begin + count][gone] = 0
    return model


def pruned(model, kept, **options):
    weights, widths = sliced(model, kept)
    made = timm.create_model(
        "efficientvit_m0_pruned", **{**SMALL, "img_size": 64, "num_classes": 5, **options}, widths=widths
    )
    made.load_state_dict(weights)
    return made.eval()


@pytest.mark.parametrize("size", [(64, 64), (224, 96)])
def test_logits_are_those_of_the_masked_model(size):
    model = make(img_size=size)
    kept = some_channels(model)
    small = pruned(model, kept, img_size=size)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, logits = masked(model, kept)(x), small(x)
        assert (expected - model(x)).abs().max() > 1e-2  # else nothing was masked
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_what_is_pruned_can_be_pruned_again():
    model = make()
    first = pruned(model, some_channels(model))
    kept = some_channels(first, seed=2)
    second = pruned(first, kept)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(second(x), masked(first, kept)(x), rtol=1e-5, atol=1e-5)
    assert full_widths(second) == {name: [len(one) for one in left] for name, left in kept.items()}


def test_where_all_is_left_nothing_changes():
    model = make()
    weights, widths = sliced(
        model, {name: [torch.arange(c) for c in counts] for name, counts in full_widths(model).items()}
    )
    assert widths == {}
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("number", range(6))
def test_without_widths_it_is_timm_s(number):
    with torch.device("meta"):
        shapes = [
            {
                name: weight.shape
                for name, weight in timm.create_model(f"efficientvit_m{number}{end}").state_dict().items()
            }
            for end in ("", "_pruned")
        ]
    assert shapes[0] == shapes[1]


def test_it_learns_and_has_maps():
    model = make()
    kept = some_channels(model)
    small = pruned(model, kept).train()
    small(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, parameter in small.named_parameters() if parameter.grad is None] == []
    args = {**SMALL, "widths": small.widths}
    maps = create_features("efficientvit_m0_pruned", 3, (64, 96), args=args).eval()(torch.randn(1, 3, 64, 96))
    assert [map_BCHW.shape[2:] for map_BCHW in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert pruned(model, kept)(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_weights_from_a_file_with_other_classes(tmp_path):
    """As `--model.pretrained` takes them: the head starts anew, the rest is the file's."""
    model = make()
    small = pruned(model, some_channels(model))
    path = tmp_path / "model.safetensors"
    preprocess = {"channels": 3, "size": [64, 64]}
    save_weights(small, path, {"classes": list("abcde"), "preprocess": preprocess})
    args = {**SMALL, "widths": small.widths}
    other = create_backbone("efficientvit_m0_pruned", 7, 3, (64, 64), str(path), args)
    own, theirs = other.state_dict(), small.state_dict()
    differ = [name for name in own if own[name].shape != theirs[name].shape or not torch.equal(own[name], theirs[name])]
    assert differ == ["head.linear.weight", "head.linear.bias"]
    assert any(".kept_" in name for name in own)  # which channels these are is in the file, too


def test_a_layer_needs_a_channel():
    model = make()
    mlp, head = "stages.0.blocks.0.ffn0.m", "stages.0.blocks.0.mixer.m.attn.qkvs.0"
    none = torch.arange(0)
    for kept in ({mlp: [none]}, {head: [none, torch.arange(2)]}, {head: [torch.arange(2), none]}):
        with pytest.raises(UserError, match=next(iter(kept))):
            sliced(model, kept)
    for widths in ({mlp: [65]}, {head: [8]}, {"stages.9": [1]}):
        with pytest.raises(UserError, match=next(iter(widths))):
            check_widths(widths, full_widths(model))
    with pytest.raises(UserError, match=mlp):
        make("efficientvit_m0_pruned", widths={mlp: [0]})
