"""compat's convolution against what causal_conv1d's computed (golden files), restatements, and its refusals."""

import pytest
import torch

from longvision.compat.mamba_ssm import (
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
)
from longvision.errors import UserError
from support.golden import cases_of, golden, relative

FUNCTIONS = [causal_conv1d_fn, causal_conv1d_ref]
UPDATES = [causal_conv1d_update, causal_conv1d_update_ref]


def random_inputs(tokens=7, width=4, dtype=torch.float32):
    """Batch 2, 5 channels."""
    x, weight, bias = torch.randn(2, 5, tokens, dtype=dtype), torch.randn(5, width), torch.randn(5)
    return {"x": x, "weight": weight, "bias": bias}


def convolved(inputs, silu):
    """(D, L + W - 1) -> (D, L), in float64: a sum over the taps for each token."""
    weight, width = inputs["weight"].double(), inputs["weight"].shape[1]
    x = inputs["x"].double()
    tokens = range(x.shape[-1] - width + 1)
    y = torch.stack([(x[..., t : t + width] * weight).sum(-1) for t in tokens], -1) + inputs["bias"].double()[:, None]
    return y * torch.sigmoid(y) if silu else y


@pytest.mark.parametrize("function", FUNCTIONS)
def test_golden(shared, function):
    """60 cases: widths 2 to 4, 1 to 64 tokens, with and without bias, initial states and SiLU; final states."""
    tensors, metadata = golden(shared, "causal_conv1d")
    names = [name for name in metadata["cases"] if not name.startswith("update.")]
    assert len(names) == 60
    for name, case in cases_of(tensors, names).items():
        inputs = {key: case[key] for key in ("x", "weight", "bias", "initial_states") if key in case}
        options = {"activation": metadata["cases"][name]["activation"], "return_final_states": True}
        leaves = {key: t.clone().requires_grad_() for key, t in inputs.items()}
        out, final = function(**leaves, **options)
        assert relative(out, case["out"]) < 1e-6, name
        assert torch.equal(final, case["final_states"]), name
        for prefix, loss in (
            ("grad", (out * case["grad_out"]).sum()),
            ("grad_with_final", (out * case["grad_out"]).sum() + (final * case["grad_final_states"]).sum()),
        ):
            found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
            for key, grad in zip(leaves, found):
                assert relative(grad, case[f"{prefix}.{key}"]) < 3e-6, (name, prefix, key)


@pytest.mark.parametrize("update", UPDATES)
def test_golden_update(shared, update):
    """12 cases: five tokens one by one, and at once."""
    tensors, _ = golden(shared, "causal_conv1d")
    names = {name.rpartition(".")[0] for name in tensors if name.startswith("update.")}
    assert len(names) == 12
    for name, case in cases_of(tensors, names).items():
        activation = "silu" if ".silu." in name else None
        rest = case["weight"], case.get("bias"), activation
        state = case["state_in"].clone()
        for t, token in enumerate(case["x"].unbind(-1)):
            assert relative(update(token, state, *rest), case["out"][..., t]) < 1e-6, name
            assert torch.equal(state, case["states"][t]), name
        state = case["state_in"].clone()
        assert relative(update(case["x"], state, *rest), case["out"]) < 1e-6, name
        assert torch.equal(state, case["states"][-1]), name


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_states_join_pieces(width, tokens):
    """Two pieces, the second after the first one's final states, are one; fewer tokens than taps among them."""
    inputs = random_inputs(tokens + 3, width)
    whole = causal_conv1d_fn(**inputs, activation="swish")
    first, second = inputs["x"].split([tokens, 3], 2)
    out1, state = causal_conv1d_fn(**inputs | {"x": first}, activation="swish", return_final_states=True)
    given = torch.full_like(state, torch.nan)
    out2, state = causal_conv1d_fn(
        **inputs | {"x": second},
        activation="silu",
        initial_states=state,
        return_final_states=True,
        final_states_out=given,
    )
    assert relative(torch.cat([out1, out2], 2), whole) < 1e-6
    padded = torch.cat([torch.zeros(2, 5, width), inputs["x"]], 2)
    assert state is given and torch.equal(state, padded[..., padded.shape[2] - width + 1 :])


def test_packed_sequences():
    """Values and gradients are those of each sequence alone; padding gives zeros."""
    inputs = random_inputs(9)
    seq_idx = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2], [4, 4, 5, 5, 5, 5, -1, -1, -1]], dtype=torch.int32)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    out = causal_conv1d_fn(**leaves, seq_idx=seq_idx, activation="silu")
    grad = torch.randn_like(out)
    out.backward(grad)
    alone = {name: tensor.double().requires_grad_() for name, tensor in inputs.items()}
    truth = torch.zeros_like(out, dtype=torch.float64)
    for row, start, end in ((0, 0, 3), (0, 3, 4), (0, 4, 9), (1, 0, 2), (1, 2, 6)):
        own = torch.cat([torch.zeros(5, 3), alone["x"][row, :, start:end]], 1)
        truth[row, :, start:end] = convolved(alone | {"x": own}, silu=True)
    truth.backward(grad.double())
    assert relative(out, truth) < 1e-6
    for name, leaf in leaves.items():
        assert relative(leaf.grad, alone[name].grad) < 3e-6, name


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("size", [3, 4, 6])
def test_ring(update, size):
    """Each row at its own place in its ring; several tokens at once, more than the ring holds too."""
    inputs = random_inputs(14)
    lengths = torch.tensor([5, 7], dtype=torch.int32)
    state = torch.full((2, 5, size), torch.nan)
    past = [inputs["x"][row, :, :length] for row, length in enumerate(lengths)]
    for row, before in enumerate(past):
        for t in range(before.shape[1]):
            state[row, :, t % size] = before[:, t]
    new = inputs["x"][:, :, 7:]
    for part in new.split([1, 4, 2], 2):
        whole = [torch.cat([before, after], 1) for before, after in zip(past, part)]
        truth = [convolved(inputs | {"x": each[:, -part.shape[2] - 3 :]}, silu=True) for each in whole]
        out = update(part, state, inputs["weight"], inputs["bias"], "silu", cache_seqlens=lengths)
        assert relative(out, torch.stack(truth)) < 1e-6
        past, lengths = whole, lengths + part.shape[2]
        for row, each in enumerate(whole):
            for t in range(each.shape[1] - size, each.shape[1]):
                assert torch.equal(state[row, :, t % size], each[:, t])


def test_rows_of_the_state():
    """Each row of x has its own row of a larger state; padding is skipped."""
    inputs = random_inputs(1)
    state = torch.randn(4, 5, 3)
    before = state.clone()
    rows = torch.tensor([3, -1], dtype=torch.int32)
    out = causal_conv1d_update(inputs["x"], state, inputs["weight"], inputs["bias"], conv_state_indices=rows)
    own = torch.cat([before[3], inputs["x"][0]], 1)
    assert relative(out[0], convolved(inputs | {"x": own}, silu=False)) < 1e-6
    assert not out[1].any()
    assert torch.equal(state[:3], before[:3]) and torch.equal(state[3], own[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_layouts(dtype):
    """Sums are float32, the output has x's dtype, and its memory is laid out as x's is."""
    inputs = random_inputs(dtype=dtype)
    padded = torch.cat([torch.zeros(2, 5, 3), inputs["x"]], 2)
    truth = convolved(inputs | {"x": padded}, silu=True)
    turned = inputs | {"x": inputs["x"].mT.contiguous().mT}
    for each in (inputs, turned):
        out = causal_conv1d_fn(**each, activation="silu")
        assert out.dtype == dtype and out.stride() == each["x"].stride()
        assert relative(out, truth) < {torch.float32: 1e-6}.get(dtype, 2**-8)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"activation": "gelu"}, "'gelu'"),
        ({"seq_idx": torch.zeros(2, 7), "initial_states": torch.zeros(2, 5, 3)}, "seq_idx and states"),
        ({"seq_idx": torch.zeros(2, 7), "return_final_states": True}, "seq_idx and states"),
        ({"seq_idx": torch.zeros(7)}, "seq_idx of shape"),
        ({"initial_states": torch.zeros(2, 5, 4)}, r"initial_states of shape \(2, 5, 4\)"),
        ({"weight": torch.zeros(7, 4)}, r"weight of shape \(7, 4\)"),
        ({"bias": torch.zeros(4)}, "bias of shape"),
        ({"x": torch.zeros(2, 7)}, "x of shape"),
        ({"x": torch.zeros(2, 0, 7)}, "at least one channel"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=words):
        causal_conv1d_fn(**(random_inputs() | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"conv_state": torch.zeros(3, 5, 4)}, r"conv_state of shape \(3, 5, 4\)"),
        ({"conv_state": torch.zeros(2, 5, 2)}, "conv_state of 2 inputs"),
        ({"conv_state": None}, "conv_state of type NoneType"),
        ({"x": 5}, "x of type int"),
        ({"cache_seqlens": 5}, "cache_seqlens of type int"),
        ({"cache_seqlens": torch.tensor(5)}, r"cache_seqlens of shape \(\)"),
        ({"cache_seqlens": torch.tensor([5])}, r"cache_seqlens of shape \(1,\)"),
        ({"conv_state_indices": torch.tensor([1])}, r"conv_state_indices of shape \(1,\)"),
    ],
)
def test_updates_that_do_not_fit(changes, words):
    inputs = {"conv_state": torch.zeros(2, 5, 4), **random_inputs(1)}
    with pytest.raises(UserError, match=f"causal_conv1d_update got.* {words}"):
        causal_conv1d_update(**(inputs | changes))


@pytest.mark.parametrize("packed", [True, False])
def test_no_sequences(packed):
    inputs = {name: t.requires_grad_() for name, t in random_inputs().items()}
    seq_idx = torch.zeros(0, 7, dtype=torch.int32) if packed else None
    out = causal_conv1d_fn(inputs["x"][:0], inputs["weight"], inputs["bias"], seq_idx)
    out.sum().backward()
    assert out.shape == (0, 5, 7) and not any(t.grad.any() for t in inputs.values())
