"""compat's inner functions against what mamba_ssm's computed (golden files) and the equations in float64."""

import pytest
import torch
import torch.nn.functional as F

from longvision.compat.mamba_ssm import (
    bimamba_inner_fn,
    bimamba_inner_ref,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
    mamba_inner_ref,
)
from longvision.errors import UserError
from support.golden import cases_of, golden, relative

NORMS = ("b_rms_weight", "c_rms_weight", "dt_rms_weight")


def random_inputs():
    """Batch 2, inner width 8, 6 tokens, 3 states, a step of rank 2, model width 5."""
    shapes = {
        "xz": (2, 16, 6),
        "conv1d_weight": (8, 1, 4),
        "conv1d_bias": (8,),
        "x_proj_weight": (8, 8),
        "delta_proj_weight": (8, 2),
        "out_proj_weight": (5, 8),
        "out_proj_bias": (5,),
        "A": (8, 3),
        "A_b": (8, 3),
        "D": (8,),
        "delta_bias": (8,),
    }
    inputs = {name: torch.randn(shape) for name, shape in shapes.items()}
    return inputs | {name: -0.2 - inputs[name].abs() for name in ("A", "A_b")}


def without(inputs, *names):
    return {name: tensor for name, tensor in inputs.items() if name not in names}


def restated(inputs, directions, norms=None, eps=1e-6):
    """The equations in float64, before the output projection: the sum over (name of A, from the last token to the
    first) -> (B, L, D)."""
    given = {name: tensor.double() for name, tensor in inputs.items()}
    norms = {name: tensor.double() for name, tensor in (norms or {}).items()}
    x, z = given["xz"].chunk(2, 1)
    padded = F.pad(x, (3, 0))
    x = sum(given["conv1d_weight"][:, 0, k, None] * padded[..., k : k + x.shape[2]] for k in range(4))
    x = F.silu(x + given["conv1d_bias"][:, None]).mT
    low, B, C = (x @ given["x_proj_weight"].T).split([2, 3, 3], -1)
    delta = low @ given["delta_proj_weight"].T

    def normed(tensor, name):
        weight = norms.get(name)
        return tensor if weight is None else tensor / (tensor.square().mean(-1, True) + eps).sqrt() * weight

    B, C, delta = (normed(tensor, name) for tensor, name in zip((B, C, delta), NORMS))
    step = F.softplus(delta + given["delta_bias"])
    total = 0
    for A, backwards in directions:
        state, ys = torch.zeros(2, *given[A].shape, dtype=torch.float64), [None] * x.shape[1]
        for t in sorted(range(x.shape[1]), reverse=backwards):
            now = step[:, t, :, None]
            state = torch.exp(now * given[A]) * state + now * x[:, t, :, None] * B[:, t, None]
            ys[t] = (state * C[:, t, None]).sum(-1) + given["D"] * x[:, t]
        total = total + torch.stack(ys, 1) * F.silu(z.mT)
    return total


def projected(y_BLD, inputs):
    return y_BLD @ inputs["out_proj_weight"].double().T + inputs["out_proj_bias"].double()


def assert_same(function, inputs, truth_of):
    """Value and all gradients are those of `truth_of`."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    out = function(**leaves)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, list(leaves.values()), grad)
    own = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    truth = truth_of(own)
    true_grads = torch.autograd.grad(truth, list(own.values()), grad.double())
    assert relative(out, truth) < 1e-6
    for name, got, true in zip(leaves, found, true_grads):
        assert relative(got, true) < 5e-6, name


@pytest.mark.parametrize("function", [mamba_inner_fn, mamba_inner_ref])
def test_golden(shared, function):
    """Biases of the projections, constant B and C, no D; all input gradients."""
    tensors, metadata = golden(shared, "mamba_inner")
    assert len(metadata["cases"]) == 6
    for name, case in cases_of(tensors, metadata["cases"]).items():
        absent = {"conv1d_bias": None, "out_proj_bias": None}
        inputs = {key: t for key, t in case.items() if key not in ("out", "grad_out") and not key.startswith("grad.")}
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in inputs.items()}
        out = function(**absent | leaves)
        out.backward(case["grad_out"])
        assert relative(out, case["out"]) < 1e-6, name
        assert {key for key in case if key.startswith("grad.")} == {f"grad.{key}" for key in leaves}
        for key, leaf in leaves.items():
            assert relative(leaf.grad, case[f"grad.{key}"]) < 5e-6, (name, key)


def test_without_output_projection():
    inputs = without(random_inputs(), "A_b", "out_proj_weight", "out_proj_bias")
    assert_same(mamba_inner_fn_no_out_proj, inputs, lambda own: restated(own, [("A", False)]).mT)
    assert mamba_inner_fn_no_out_proj(**inputs).is_contiguous()


@pytest.mark.parametrize("function", [bimamba_inner_fn, bimamba_inner_ref])
def test_both_directions(function):
    """They share all but A, and are summed, not averaged."""
    truth = lambda own: projected(restated(own, [("A", False), ("A_b", True)]), own)  # noqa: E731
    assert_same(function, random_inputs(), truth)


def test_normalised():
    """B, C and the step, as FalconMamba's blocks have them."""
    inputs = without(random_inputs(), "A_b")
    inputs |= {"b_rms_weight": torch.rand(3), "c_rms_weight": torch.rand(3), "dt_rms_weight": torch.rand(8)}
    truth = lambda own: projected(restated(own, [("A", False)], {name: own[name] for name in NORMS}), own)  # noqa: E731
    assert_same(mamba_inner_fn, inputs, truth)


def test_mixed_precision():
    """Under autocast the projections are bfloat16, and so is the output; the decay rates stay float32."""
    inputs = without(random_inputs(), "A_b")
    truth = mamba_inner_fn(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = mamba_inner_fn(**inputs)
    assert out.dtype == torch.bfloat16
    assert relative(out, truth) < 2**-6


FUNCTIONS = {
    mamba_inner_fn: ("A_b",),
    mamba_inner_ref: ("A_b",),
    mamba_inner_fn_no_out_proj: ("A_b", "out_proj_weight", "out_proj_bias"),
    bimamba_inner_fn: (),
    bimamba_inner_ref: (),
}  # and what each does not take


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ["A", "A_b"])
def test_complex_rates(function, name):
    inputs = without(random_inputs(), *FUNCTIONS[function])
    if name in inputs:
        with pytest.raises(UserError, match=f"{function.__name__} got a complex {name},"):
            function(**inputs | {name: inputs[name].to(torch.complex64)})


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"B": (2, 3, 6)},
        {"C": (2, 3, 6)},
        {"B": (2, 6, 3)},
        {"delta_proj_weight": (8, 1)},
        {"x_proj_weight": (9, 8)},
        {"A": (7, 3)},
        {"xz": (16, 6)},
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(function, changes):
    """B and C of each token, as the scan alone takes them; and rows of x_proj_weight that nobody would read."""
    changed = {name: torch.randn(shape) for name, shape in changes.items()}
    name = {"delta_proj_weight": "x_proj_weight"}.get(*changes, *changes)
    with pytest.raises(UserError, match=f"^{function.__name__} got {name} of shape"):
        function(**without(random_inputs(), *FUNCTIONS[function]) | changed)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_as_many_tokens_as_states(function):
    """Where a B of each token has the shapes of a transposed one."""
    inputs = without(random_inputs(), *FUNCTIONS[function])
    inputs |= {"xz": torch.randn(2, 16, 3), "x_proj_weight": torch.randn(5, 8), "B": torch.randn(2, 3, 3)}
    with pytest.raises(UserError, match=f"^{function.__name__} got B of shape"):
        function(**inputs)
