"""First-order Taylor importance: against gates in the forward pass, and what is chosen by it."""

from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import GluMlp

from longvision.errors import UserError
from longvision.explain.importance import (
    Importance,
    choose,
    finding,
    kept_channels,
    measure_importance,
    units_of,
)
from longvision.models.pruned_efficientvit import full_widths
from support.efficientvits import make


def batches(size=64, count=2):
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(4, 3, size, size, generator=generator), torch.randint(5, (4,), generator=generator))
        for _ in range(count)
    ]


def by_gates(model, module, channels, shape, batches):
    """|∂loss/∂g| of a factor g = 1 on each channel of a module's output, averaged over batches: what the channel's
    weights times their gradients add up to."""
    found = []
    model.requires_grad_(False)
    for images, target in batches:
        gate = torch.ones(channels, requires_grad=True)
        hook = module.register_forward_hook(lambda _, __, out, gate=gate: out * gate.view(shape))
        F.cross_entropy(model(images), target).backward()
        hook.remove()
        found.append(gate.grad.abs())
    return torch.stack(found).mean(0)


def values(found, layer, kind):
    return next(one.values_C for one in found if (one.layer, one.kind) == (layer, kind))


def test_it_is_the_gradient_of_a_gate_on_each_channel():
    model = make()
    model.head.linear.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    found = measure_importance(model, batches())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained  # as before, and without gradients
    assert all(parameter.grad is None for parameter in model.parameters())
    attention = model.stages[2].blocks[1].mixer.m.attn
    layer = "stages.2.blocks.1.mixer.m.attn.qkvs.1"
    gates = by_gates(model, attention.qkvs[1], 8 + 8 + 16, (1, -1, 1, 1), batches())
    queries = by_gates(model, attention.dws[1], 8, (1, -1, 1, 1), batches())
    torch.testing.assert_close(values(found, layer, "q"), queries, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(values(found, layer, "k"), gates[8:16], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(values(found, layer, "v"), gates[16:], rtol=1e-3, atol=1e-6)
    mlp = by_gates(model, model.stages[0].blocks[0].ffn0.m.pw1, 64, (1, -1, 1, 1), batches())
    torch.testing.assert_close(values(found, "stages.0.blocks.0.ffn0.m", "ffn"), mlp, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["efficientvit", "vit"])
def test_a_query_matters_as_much_as_its_key(name):
    """Both are factors of one product: a fact, which lets the two go together."""
    if name == "vit":
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)
    else:
        model = make()
    found = {(one.layer, one.kind): one.values_C for one in measure_importance(model, batches())}
    queries = [key for key in found if key[1] == "q"]
    assert len(queries) == (6 if name == "vit" else 2 + 2 + 2 * 3)
    for layer, _ in queries:
        torch.testing.assert_close(found[layer, "q"], found[layer, "k"], rtol=1e-2, atol=1e-8)


def test_of_timm_s_transformers():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)
    found = measure_importance(model, batches())
    gates = by_gates(model, model.blocks[1].attn.qkv, 3 * 192, (1, 1, -1), batches()).view(3, 3, 64)
    for head in range(3):
        for number, kind in enumerate("qkv"):
            got = values(found, f"blocks.1.attn.qkv.{head}", kind)
            torch.testing.assert_close(got, gates[number, head], rtol=1e-2, atol=1e-7)
    mlp = by_gates(model, model.blocks[0].mlp.fc1, 768, (1, 1, -1), batches())
    torch.testing.assert_close(values(found, "blocks.0.mlp", "ffn"), mlp, rtol=1e-2, atol=1e-7)


def test_labels_of_any_number():
    model = make()
    images, _ = batches()[0]
    target = torch.tensor([[0.0, 1, 0, 1, 1]] * 4)
    many = measure_importance(model, [(images, target)], multilabel=True)
    assert all(one.values_C.isfinite().all() for one in many)
    assert sum(float(one.values_C.sum()) for one in many) > 0


def test_a_model_without_attention_and_no_images():
    with pytest.raises(UserError, match="ResNet"):
        measure_importance(timm.create_model("resnet10t"), batches())
    with pytest.raises(UserError, match="no"):
        measure_importance(make(), [])


@pytest.mark.parametrize("broken", ["head", "a gradient"])
def test_what_is_not_finite_is_refused(broken):
    """NaN would be ranked as the most important. The model's parameters are as they were, all the same."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_classes=5)
    model.head.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    if broken == "head":
        model.head.bias.data.fill_(float("nan"))
    else:  # the loss is finite, a gradient is not
        model.blocks[0].mlp.fc1.register_forward_hook(lambda _, __, out: NoGradient.apply(out))
    with pytest.raises(
        UserError, match="loss of batch 1 is nan" if broken == "head" else r"blocks\.0\.attn.* 10 of 20"
    ):
        measure_importance(model, batches(32))
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("gate_last", [True, False])
def test_gated_mlps_have_as_many_channels_as_their_second_layer_reads(gate_last):
    """Each with the gradient of a gate on it."""
    torch.manual_seed(0)
    gated = partial(GluMlp, gate_last=gate_last)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_classes=5, mlp_layer=gated
    ).eval()
    got = values(measure_importance(model, batches(32)), "blocks.1.mlp", "ffn")
    truth = by_gates(model, model.blocks[1].mlp.drop1, 24, (1, 1, -1), batches(32))
    torch.testing.assert_close(got, truth, rtol=1e-2, atol=1e-7)


FOUND = [
    Importance("a.qkvs.0", "q", torch.tensor([1.0, 5.0])),
    Importance("a.qkvs.0", "k", torch.tensor([3.0, 5.0])),
    Importance("a.qkvs.0", "v", torch.tensor([0.0, 0.1])),
    Importance("b", "ffn", torch.tensor([4.0, 9.0, 3.0, 1.0])),
]


@pytest.mark.parametrize("keep, expected", [
    (1.0, [[0, 1], [0, 1], [0, 1, 2, 3]]),
    (0.75, [[0, 1], [1], [0, 1, 2]]),
    (0.5, [[1], [1], [0, 1]]),  # 5, 9 and 4, and the best of the values, which no layer is without
    (0.375, [[1], [1], [1]]),
])  # fmt: skip
def test_the_most_important_of_all_layers_are_kept(keep, expected):
    units = units_of(FOUND)
    assert [unit.kind for unit in units] == ["qk", "v", "ffn"]
    assert units[0].values_C.tolist() == [2, 5]
    assert [left_C.tolist() for left_C in choose(units, keep)] == expected


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan"), 0.3])
def test_shares_that_cannot_be(keep):
    with pytest.raises(UserError, match=f"--keep {keep:g}"):
        choose(units_of(FOUND), keep)


def test_what_can_be_pruned():
    model = make()
    kept = kept_channels(model, measure_importance(model, batches()), 0.5)
    whole = sum(sum(counts) for counts in full_widths(model).values())
    assert sum(len(one) for left in kept.values() for one in left) == round(whole / 2)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)
    with pytest.raises(UserError, match="VisionTransformer"):
        kept_channels(vit, [], 0.5)


def test_files(tmp_path):
    result = finding(FOUND, 0.5, "a model")
    for name, write in result.files.items():
        write(tmp_path / name)
    lines = (tmp_path / "importance.csv").read_text().splitlines()
    assert lines[0] == "layer,kind,channel,importance,kept"
    assert lines[1] == "a.qkvs.0,query,0,1,no" and lines[-3] == "b,MLP,1,9,yes" and len(lines) == 1 + 2 + 2 + 2 + 4
    assert (tmp_path / "importance.png").read_bytes().startswith(b"\x89PNG")
    assert "values 50%" in result.sentence
