"""compat's scan against what mamba_ssm's computed (golden files), the equations in float64, and its refusals."""

import re

import pytest
import torch

from longvision.compat.mamba_ssm import selective_scan_fn, selective_scan_ref, selective_state_update
from longvision.errors import UserError
from support.golden import cases_of, golden, relative

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
KINDS = {"constant": (6, 3), "per token": (2, 3, 9), "one group": (2, 1, 3, 9), "groups": (2, 3, 3, 9)}


def random_inputs(kind_B, kind_C, *, dtype=torch.float32, seed=0):
    """Batch 2, 6 channels, 9 tokens, 3 states; delta has softplus to come."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    shapes = {"u": (2, 6, 9), "delta": (2, 6, 9), "B": KINDS[kind_B], "C": KINDS[kind_C], "D": (6,), "z": (2, 6, 9)}
    tensors = {name: normal(*shape) for name, shape in shapes.items()} | {"delta_bias": normal(6) - 1}
    tensors["A"] = -0.1 - normal(6, 3).abs()
    return {name: t.to(dtype) if t.ndim > 2 else t for name, t in tensors.items()}


def restated(u, delta, A, B, C, D, z, delta_bias):
    """The equations in float64, channel by channel and token by token, from a state of zeros, with softplus.

    -> output and last state; differentiable.
    """
    u, delta, A, B, C, D, z, delta_bias = (t.double() for t in (u, delta, A, B, C, D, z, delta_bias))
    batch, channels, tokens = u.shape

    def at(kind, b, d, t):
        if kind.ndim == 2:
            return kind[d]
        return kind[b, :, t] if kind.ndim == 3 else kind[b, d // (channels // kind.shape[1]), :, t]

    rows, last = [], []
    for b in range(batch):
        for d in range(channels):
            state, y = torch.zeros_like(A[0]), []
            for t in range(tokens):
                step = torch.log1p(torch.exp(delta[b, d, t] + delta_bias[d]))
                state = torch.exp(step * A[d]) * state + step * u[b, d, t] * at(B, b, d, t)
                gate = z[b, d, t] / (1 + torch.exp(-z[b, d, t]))
                y.append(((state * at(C, b, d, t)).sum() + D[d] * u[b, d, t]) * gate)
            rows.append(torch.stack(y))
            last.append(state)
    return torch.stack(rows).unflatten(0, (batch, channels)), torch.stack(last).unflatten(0, (batch, channels))


def value_and_grads(function, tensors, grad, **options):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    out = function(**leaves, **options)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(grad.to(out.dtype))
    return out.detach(), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("function", [selective_scan_fn, selective_scan_ref])
def test_golden(shared, function):
    """50 cases: every kind of B and C, every optional argument, 1 to 63 tokens."""
    tensors, metadata = golden(shared, "selective_scan")
    assert len(metadata["cases"]) == 50
    for name, case in cases_of(tensors, metadata["cases"]).items():
        inputs = {key: case[key] for key in NAMES if key in case}
        softplus = metadata["cases"][name]["delta_softplus"]
        out, grads = value_and_grads(function, inputs, case["grad_out"], delta_softplus=softplus)
        assert relative(out, case["out"]) < 1e-6, name
        for key, grad in grads.items():
            assert relative(grad, case[f"grad.{key}"]) < 3e-6, (name, key)
        again, last = function(**inputs, delta_softplus=softplus, return_last_state=True)
        assert relative(again, case["out"]) < 1e-6, name
        assert relative(last, case["last_state"]) < 1e-6, name


def test_golden_complex(shared):
    tensors, metadata = golden(shared, "selective_scan_complex")
    for name, case in cases_of(tensors, metadata["cases"]).items():
        A = torch.complex(case["A_real"], case["A_imag"]).requires_grad_()
        inputs = {key: case[key].clone().requires_grad_() for key in NAMES if key in case}
        BC = inputs["B"], inputs["C"]
        BC = BC if metadata["cases"][name]["variable"] else [torch.view_as_complex(each) for each in BC]
        rest = [inputs[key] for key in ("D", "z", "delta_bias")]
        out, last = selective_scan_ref(inputs["u"], inputs["delta"], A, *BC, *rest, True, return_last_state=True)
        out.backward(case["grad_out"])
        assert relative(out, case["out"]) < 1e-6, name
        assert relative(torch.view_as_real(last), case["last_state"]) < 1e-6, name
        assert relative(torch.view_as_real(A.grad), torch.stack([case["grad.A_real"], case["grad.A_imag"]], -1)) < 3e-6
        for key, tensor in inputs.items():
            assert relative(tensor.grad, case[f"grad.{key}"]) < 3e-6, (name, key)


@pytest.mark.parametrize("kind_C", KINDS)
@pytest.mark.parametrize("kind_B", KINDS)
def test_every_kind_of_B_and_C(kind_B, kind_C):
    """Values, last state and all gradients, those through the last state too, against the equations."""
    tensors = random_inputs(kind_B, kind_C)
    grads = {}
    for function, options in ((selective_scan_fn, {"delta_softplus": True, "return_last_state": True}), (restated, {})):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        out, last = function(**leaves, **options)
        (out.square().sum() + last.sum()).backward()
        grads[function] = {name: leaf.grad for name, leaf in leaves.items()} | {"out": out, "last": last}
    for name, truth in grads[restated].items():
        assert relative(grads[selective_scan_fn][name], truth) < 3e-6, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """The output has u's, the state is float32; inside all is float32: a rounding of the result remains."""
    tensors = random_inputs("per token", "groups", dtype=dtype)
    out, last = selective_scan_fn(**tensors, delta_softplus=True, return_last_state=True)
    truth, true_last = restated(**tensors)
    assert (out.dtype, last.dtype) == (dtype, torch.float32)
    assert relative(out, truth) < {torch.float32: 1e-6}.get(dtype, 2**-8)
    assert relative(last, true_last) < 1e-6
    _, grads = value_and_grads(selective_scan_fn, tensors, torch.ones_like(out), delta_softplus=True)
    assert all(grad.dtype == tensors[name].dtype for name, grad in grads.items())


def test_layout():
    """The output's tokens are contiguous, as callers' views need it, whatever the inputs' memory is like."""
    tensors = random_inputs("per token", "per token")
    turned = {name: t.mT.contiguous().mT if t.ndim == 3 else t for name, t in tensors.items()}
    out, other = (selective_scan_fn(**each, delta_softplus=True) for each in (tensors, turned))
    assert out.is_contiguous() and other.is_contiguous()
    assert torch.equal(out, other)


def test_one_step_for_all_channels():
    """And the gradient of a sum over them: neither has strides there. Tokens are contiguous, and are not copied."""
    tensors, of_token = random_inputs("groups", "per token"), torch.randn(2, 9)
    tensors |= {name: tensors[name][:, :1] for name in ("delta", "z")}
    grads = {}
    for function, options in ((selective_scan_fn, {"delta_softplus": True}), (restated, {})):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        out = function(**leaves | {name: leaves[name].expand(2, 6, 9) for name in ("delta", "z")}, **options)
        out = out[0] if function is restated else out
        (out.sum(1) * of_token).sum().backward()
        grads[function] = {name: leaf.grad for name, leaf in leaves.items()} | {"out": out}
    for name, truth in grads[restated].items():
        assert relative(grads[selective_scan_fn][name], truth) < 3e-6, name


def test_one_step_after_another():
    """`selective_state_update` goes on where the scan ended."""
    tensors = random_inputs("per token", "per token")
    first = {name: t[..., :4] if t.ndim == 3 else t for name, t in tensors.items()}
    truth, true_last = restated(**tensors)
    _, state = selective_scan_fn(**first, delta_softplus=True, return_last_state=True)
    A, D, bias = (tensors[name] for name in ("A", "D", "delta_bias"))
    for t in range(4, 9):
        u, delta, B, C, z = (tensors[name][..., t] for name in ("u", "delta", "B", "C", "z"))
        y = selective_state_update(state, u, delta, A, B, C, D, z, bias, dt_softplus=True)
        assert relative(y, truth[..., t]) < 1e-6
    assert relative(state, true_last) < 1e-6


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"A": torch.ones(6, 3, dtype=torch.complex64)}, "complex"),
        ({"B": torch.ones(2, 4, 3, 9)}, "4 groups for 6 channels"),
        ({"C": torch.ones(2, 0, 3, 9)}, "0 groups"),
        ({"B": torch.ones(2, 9, 3)}, r"\(batch, states, tokens\): \(2, 3, 9\)"),
        ({"delta": torch.ones(2, 9, 6)}, r"delta of shape \(2, 9, 6\)"),
        ({"u": torch.ones(6, 9)}, r"u of shape \(6, 9\)"),
        ({"D": torch.ones(3)}, "D of shape"),
        ({"A": torch.ones(6)}, "A of shape"),
        ({"C": None}, "C of"),
        ({"z": 1}, "z of type int"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(UserError, match=f"selective_scan_fn got.*{words}"):
        selective_scan_fn(**(random_inputs("per token", "per token") | changes))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"B": torch.ones(2, 3, 12)}, r"B of shape \(2, 3, 12\)"),
        ({"C": torch.ones(2, 4, 3, 9)}, "4 groups for 6 channels"),
        ({"A": 1}, "A of type int"),
    ],
)
def test_refusals_of_the_reference(changes, words):
    """B with more tokens than u was once cut."""
    with pytest.raises(UserError, match=f"selective_scan_ref got.*{words}"):
        selective_scan_ref(**(random_inputs("per token", "per token") | changes))


UPDATE = {"state": (3, 6, 4), "x": (3, 6), "dt": (3, 6), "A": (6, 4), "B": (3, 4), "C": (3, 4)}


@pytest.mark.parametrize(
    "name, shape",
    [
        *(("x", (1, 6)), ("dt", (1, 6)), ("B", (1, 4)), ("C", (3, 1, 4)), ("A", (1, 4)), ("z", (1, 6)), ("D", (1,))),
        *(("dt_bias", (6, 1)), ("state", (1, 6, 4)), ("state", (3, 2, 3, 4))),
    ],
    ids=str,
)
def test_an_update_broadcasts_nothing(name, shape):
    """A batch of another size than the state's; Mamba-2's heads, which would be right for some sizes."""
    tensors = {key: torch.randn(size) for key, size in (UPDATE | {name: shape}).items()}
    selective_state_update(**{key: torch.randn(size) for key, size in UPDATE.items()})
    found = "x of shape (3, 6)" if shape == (1, 6, 4) else f"{name} of shape {shape}"
    with pytest.raises(UserError, match=re.escape(f"selective_state_update got {found}")):
        selective_state_update(**tensors)


def test_an_update_of_heads():
    """Four of two channels, in two groups."""
    x, A, B = torch.randn(2, 4, 2), -torch.rand(4, 2, 3), torch.randn(2, 2, 3)
    with pytest.raises(UserError, match="heads"):
        selective_state_update(torch.zeros(2, 4, 2, 3), x, x, A, B, B)


def test_float64_stays():
    """In the scan, its reference and its update: nothing goes through float32."""
    tensors = {name: t.double() for name, t in random_inputs("per token", "groups").items()}
    truth, true_last = restated(**tensors)
    for function in (selective_scan_fn, selective_scan_ref):
        out, last = function(**tensors, delta_softplus=True, return_last_state=True)
        assert (out.dtype, last.dtype) == (torch.float64, torch.float64)
        assert relative(out, truth) < 1e-14 and relative(last, true_last) < 1e-14
    tensors = {name: t.double() for name, t in random_inputs("per token", "per token").items()}
    truth, _ = restated(**tensors)
    state = torch.zeros(2, 6, 3, dtype=torch.float64)
    A, D, bias = (tensors[name] for name in ("A", "D", "delta_bias"))
    for t in range(9):
        u, delta, B, C, z = (tensors[name][..., t] for name in ("u", "delta", "B", "C", "z"))
        y = selective_state_update(state, u, delta, A, B, C, D, z, bias, dt_softplus=True)
        assert relative(y, truth[..., t]) < 1e-14


def test_no_sequences():
    """A batch of 0, forward and backward."""
    tensors = {name: t[:0] if t.ndim > 2 else t for name, t in random_inputs("groups", "groups").items()}
    out, grads = value_and_grads(selective_scan_fn, tensors, torch.ones(0, 6, 9), delta_softplus=True)
    assert out.shape == (0, 6, 9)
    assert all(grad.shape == tensors[name].shape and not grad.any() for name, grad in grads.items())


def test_autocast_changes_nothing_inside():
    tensors = random_inputs("per token", "groups")
    truth, true_grads = value_and_grads(selective_scan_fn, tensors, torch.ones(2, 6, 9), delta_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = value_and_grads(selective_scan_fn, tensors, torch.ones(2, 6, 9), delta_softplus=True)
    assert torch.equal(out, truth) and all(torch.equal(grads[name], grad) for name, grad in true_grads.items())


def test_compiled():
    """As one graph, with the gradients."""
    tensors = random_inputs("per token", "groups")
    truth, true_grads = value_and_grads(selective_scan_fn, tensors, torch.ones(2, 6, 9), delta_softplus=True)
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan_fn, fullgraph=True, backend="aot_eager")
    out, grads = value_and_grads(compiled, tensors, torch.ones(2, 6, 9), delta_softplus=True)
    assert torch.equal(out, truth) and all(relative(grads[name], grad) < 1e-6 for name, grad in true_grads.items())


def test_it_is_our_op(monkeypatch):
    """On the op's backends: one that does not exist is refused."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "no such backend")
    with pytest.raises(ValueError, match="no such backend"):
        selective_scan_fn(**random_inputs("per token", "per token"))
