"""The scan against a closed form written here, its backends against the reference, and its life as one graph node."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvision.ops import selective_scan
from longvision.ops.selective_scan import chunked, op
from support.scan_cases import (
    BACKENDS,
    FASTER,
    NAMES,
    assert_close,
    compiler_exists,
    distance,
    in_double,
    make,
    scan,
    value_and_grads,
)

pytestmark = pytest.mark.usefixtures("poison")

LENGTHS = (1, 2, 15, 16, 17, 63, 197)


def dense_scan(x, delta, A, B, C, D, z, delta_bias, *, delta_softplus, reverse, boundaries=None):
    """Without a recurrence: every token reads every token before it (behind it, if reversed) in its own sequence.

    y_t = sum_s C_t . exp(A sum of the steps from s, without s, to t) step_s x_s B_s, then D x and silu(z); numpy.
    """
    x, delta, A, B, C, D, z, delta_bias = (
        None if t is None else t.double().numpy() for t in (x, delta, A, B, C, D, z, delta_bias)
    )
    tokens = x.shape[1]
    step = delta if delta_bias is None else delta + delta_bias
    step = np.logaddexp(0, step) if delta_softplus else step
    t, s = np.arange(tokens)[:, None], np.arange(tokens)[None]
    r = np.arange(tokens)[:, None, None]
    between = (t[None] <= r) & (r < s[None]) if reverse else (s[None] < r) & (r <= t[None])
    elapsed = np.einsum("rts,bre->btse", between.astype(np.float64), step)
    reads = (s >= t) if reverse else (s <= t)
    if boundaries is not None:
        sequence = np.searchsorted(boundaries, np.arange(tokens), side="right")
        reads = reads & (sequence[:, None] == sequence[None])
    kernel = np.exp(elapsed[..., None] * A) * reads[None, :, :, None, None]
    y = np.einsum("btn,btsen,bse,bsn->bte", C, kernel, step * x, B, optimize=True)
    y = y if D is None else y + D * x
    return torch.from_numpy(y if z is None else y * z / (1 + np.exp(-z)))


# The equations


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 17, 40])
def test_equals_the_dense_form(backend, reverse, tokens):
    tensors = make(2, tokens, 3, 4)
    truth = dense_scan(**tensors, delta_softplus=True, reverse=reverse)
    y = scan(tensors, backend, delta_softplus=True, reverse=reverse)
    assert distance(y, truth) < 1e-13  # both float64; some forty roundings of 1e-16 each


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("boundaries", [[0, 40], [0, 1, 2, 5, 40], [0, 16, 32, 40], [0, 17, 39, 40]])
def test_packed_equals_the_dense_form(backend, reverse, boundaries):
    tensors = make(1, 40, 3, 4)
    truth = dense_scan(**tensors, delta_softplus=True, reverse=reverse, boundaries=boundaries)
    y = scan(tensors, backend, delta_softplus=True, reverse=reverse, cu_seqlens=torch.tensor(boundaries))
    assert distance(y, truth) < 1e-13  # as above


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("absent", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_arguments_equal_the_dense_form(backend, absent, softplus):
    tensors = make(2, 19, 3, 2, softplus=softplus) | dict.fromkeys(absent)
    truth = dense_scan(**tensors, delta_softplus=softplus, reverse=False)
    assert distance(scan(tensors, backend, delta_softplus=softplus), truth) < 1e-13  # as above


def test_a_hand_computed_scan():
    """One channel, one state, decay 1/2 a token: h = 1, 2.5, 4.25 for x = 1, 2, 3 with unit steps."""
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    x, A = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(1, 3, 1), -torch.log(2 * torch.ones(1, 1)).double()
    for backend in ("cpu", "chunked", "reference") if compiler_exists() else ("chunked", "reference"):
        forth = selective_scan(x, one, A, one, one, backend=backend).flatten()
        back = selective_scan(x, one, A, one, one, reverse=True, backend=backend).flatten()
        # log(2) was taken in float32 above: good to 6e-8
        torch.testing.assert_close(forth, torch.tensor([1, 2.5, 4.25]).double(), rtol=1e-6, atol=0)
        torch.testing.assert_close(back, torch.tensor([2.75, 3.5, 3]).double(), rtol=1e-6, atol=0)


# Faster backends against the reference: values and every gradient


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_float64_agrees_with_the_reference(backend, reverse, tokens):
    tensors, grad = make(2, tokens, 4, 3), torch.randn(2, tokens, 4, dtype=torch.float64)
    options = {"delta_softplus": True, "reverse": reverse}
    truth = value_and_grads(tensors, "reference", grad, **options)
    # Two orders of summation in float64, over up to 197 tokens.
    assert_close(value_and_grads(tensors, backend, grad, **options), truth, 1e-13)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("absent", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("softplus", [False, True])
def test_gradients_without_the_optional_arguments(backend, absent, softplus):
    tensors = make(2, 37, 4, 3, softplus=softplus) | dict.fromkeys(absent)
    grad = torch.randn(2, 37, 4, dtype=torch.float64)
    truth = value_and_grads(tensors, "reference", grad, delta_softplus=softplus)
    assert_close(value_and_grads(tensors, backend, grad, delta_softplus=softplus), truth, 1e-13)  # as above


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tokens", [*LENGTHS, 577])
def test_float32_is_near_float64(backend, reverse, tokens):
    tensors, grad = make(2, tokens, 4, 4, torch.float32), torch.randn(2, tokens, 4)
    options = {"delta_softplus": True, "reverse": reverse}
    truth = value_and_grads(in_double(tensors), "reference", grad.double(), **options)
    # A unit roundoff is 6e-8. The state forgets within some ten tokens, so few roundings meet in one value; the sums
    # over all tokens (A, D, bias) cancel, which costs a few roundings more.
    assert_close(value_and_grads(tensors, backend, grad, **options), truth, 3e-6)


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("reverse", [False, True])
def test_half_precision_rounds_once(backend, dtype, unit, reverse):
    """Inputs, output and gradients are half precision, all between is float32: each result is a rounded truth."""
    if (backend, dtype) == ("cpu", torch.float16):
        with pytest.raises(
            ValueError, match=r"cannot take torch.float16 on cpu: it needs float32, float64 or bfloat16;"
        ):
            scan(make(1, 3, 2, 2, dtype), backend)
        return
    tensors, grad = make(2, 63, 4, 4, dtype), torch.randn(2, 63, 4).to(dtype)
    options = {"delta_softplus": True, "reverse": reverse}
    truth = value_and_grads(in_double(tensors), "reference", grad.double(), **options)
    got = value_and_grads(tensors, backend, grad, **options)
    for name, expected in truth.items():
        assert got[name].dtype == dtype
        # Rounding to the nearest is off by at most a unit roundoff; the rest is float32's error, as above.
        error = (got[name].double() - expected).abs()
        assert (error <= unit * expected.abs() + 3e-6 * expected.abs().max()).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_precision_of_training(backend):
    """What the mixer hands in under autocast: activations in bf16, parameters in float32."""
    tensors = make(2, 33, 4, 4, torch.bfloat16)
    for name in ("A", "D", "delta_bias"):
        tensors[name] = tensors[name].float()
    grad = torch.randn(2, 33, 4).bfloat16()
    truth = value_and_grads(in_double(tensors), "reference", grad.double(), delta_softplus=True)
    got = value_and_grads(tensors, backend, grad, delta_softplus=True)
    for name, expected in truth.items():
        parameter = name in ("A", "D", "delta_bias")
        assert got[name].dtype == (torch.float32 if parameter else torch.bfloat16)
        # Parameters' gradients never see bf16: float32's error alone. The others are rounded once, by 2**-8 at most.
        unit = 0 if parameter else 2**-8
        error = (got[name].double() - expected).abs()
        assert (error <= unit * expected.abs() + 3e-6 * expected.abs().max()).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_bias_and_softplus_are_taken_in_float32(backend):
    """256 + 1 is 256 in bf16, and softplus(-30), 9e-14, is lost next to a one."""
    one = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    step = selective_scan(
        one, 256 * one, -torch.ones(1, 1), one / 257, one, delta_bias_E=torch.ones(1), backend=backend
    )
    expected = (257 * (one.double() / 257).bfloat16().double()).bfloat16()
    assert step.item() == expected.item()
    for raw in (-30.0, 30.0, -80.0, 21.0):
        x = torch.ones(1, 1, 1)
        step = selective_scan(x, raw * x, -x[0], x, x, delta_softplus=True, backend=backend).double()
        truth = np.logaddexp(0, raw)
        assert abs(step.item() - truth) <= 2e-7 * truth  # two float32 roundings, relative even where it is 1e-35
    x = torch.ones(1, 1, 1, dtype=torch.float64)
    step = selective_scan(x, 21 * x, -x[0], x, x, delta_softplus=True, backend=backend)
    assert abs(step.item() - np.logaddexp(0, 21.0)) < 1e-14  # torch's softplus says 21 here: it is 21 + 8e-10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rate", [-64.0, -1e-3])
@pytest.mark.parametrize("raw", [-30.0, 30.0])
def test_extreme_steps_and_rates(backend, rate, raw):
    tensors = make(1, 40, 3, 4, torch.float32, bias=False)
    tensors["A"] = torch.full_like(tensors["A"], rate)
    tensors["delta"] = torch.where(torch.rand(1, 40, 3) < 0.5, raw, tensors["delta"])
    grad = torch.randn(1, 40, 3)
    truth = value_and_grads(in_double(tensors), "reference", grad.double(), delta_softplus=True)
    # Float32's roundings, as above; with slow decay and steps of 30 all forty tokens add up in the state.
    assert_close(value_and_grads(tensors, backend, grad, delta_softplus=True), truth, 1e-5)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(backend, reverse):
    tensors = make(1, 18, 2, 2)
    leaves = [tensors[name].requires_grad_() for name in NAMES]
    boundaries = torch.tensor([0, 5, 18])

    def packed(*leaves):
        return selective_scan(*leaves, delta_softplus=True, reverse=reverse, cu_seqlens=boundaries, backend=backend)

    assert torch.autograd.gradcheck(packed, leaves)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 50),
    width=st.integers(1, 5),
    states=st.integers(1, 5),
    reverse=st.booleans(),
    present=st.tuples(*[st.booleans()] * 4),
    cuts=st.none() | st.sets(st.integers(1, 49)),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_options(batch, tokens, width, states, reverse, present, cuts, seed):
    D, z, bias, softplus = present
    boundaries = None
    if cuts is not None:
        batch, boundaries = 1, torch.tensor([0, *sorted(c for c in cuts if c < tokens), tokens])
    tensors = make(batch, tokens, width, states, D=D, z=z, bias=bias, softplus=softplus, seed=seed)
    grad = torch.randn(batch, tokens, width, dtype=torch.float64)
    options = {"delta_softplus": softplus, "reverse": reverse, "cu_seqlens": boundaries}
    truth = value_and_grads(tensors, "reference", grad, **options)
    for backend in ("chunked", "cpu") if compiler_exists() else ("chunked",):
        # Float64; sums that happen to cancel to little lose some digits more than in the tests above.
        assert_close(value_and_grads(tensors, backend, grad, **options), truth, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("lengths", [[1], [16, 16], [1, 1, 1], [3, 40, 16, 1, 20]])
def test_packed_is_one_after_the_other(backend, reverse, lengths):
    tokens = sum(lengths)
    tensors, grad = make(1, tokens, 3, 4), torch.randn(1, tokens, 3, dtype=torch.float64)
    boundaries = [0, *np.cumsum(lengths).tolist()]
    options = {"delta_softplus": True, "reverse": reverse}
    packed = value_and_grads(tensors, backend, grad, cu_seqlens=torch.tensor(boundaries, dtype=torch.int32), **options)

    per_token = ("x", "delta", "B", "C", "z")
    parts = [
        value_and_grads(
            {name: t[:, a:b] if name in per_token else t for name, t in tensors.items()},
            backend,
            grad[:, a:b],
            **options,
        )
        for a, b in pairwise(boundaries)
    ]
    separate = {
        name: torch.cat([part[name] for part in parts], 1)
        if name in ("y", *per_token)
        else sum(part[name] for part in parts)
        for name in packed
    }
    assert_close(packed, separate, 1e-13)  # float64, two orders of summation


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 16, 37])
def test_reverse_is_flipped_forward(backend, tokens):
    tensors, grad = make(2, tokens, 3, 4), torch.randn(2, tokens, 3, dtype=torch.float64)
    per_token = ("x", "delta", "B", "C", "z")
    flipped = {name: t.flip(1) if name in per_token else t for name, t in tensors.items()}
    back = value_and_grads(tensors, backend, grad, delta_softplus=True, reverse=True)
    forth = value_and_grads(flipped, backend, grad.flip(1), delta_softplus=True)
    forth = {name: t.flip(1) if name in ("y", *per_token) else t for name, t in forth.items()}
    assert_close(back, forth, 1e-13)  # float64, two orders of summation


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_need_not_be_contiguous(backend):
    """Halves and thirds of one projection are what the mixer hands in."""
    tensors, grad = make(2, 21, 4, 3), torch.randn(2, 4, 21, dtype=torch.float64).transpose(1, 2)
    truth = value_and_grads(tensors, backend, grad.contiguous(), delta_softplus=True)
    x, z = torch.cat([tensors["x"], tensors["z"]], -1).chunk(2, -1)
    B, C = torch.cat([tensors["B"], tensors["C"]], -1).chunk(2, -1)
    delta = tensors["delta"].transpose(0, 1).contiguous().transpose(0, 1)
    A = tensors["A"].T.contiguous().T
    strided = {**tensors, "x": x, "z": z, "B": B, "C": C, "delta": delta, "A": A}
    assert not any(strided[name].is_contiguous() for name in ("x", "z", "B", "C", "delta", "A"))
    leaves = {name: t.detach().requires_grad_() for name, t in strided.items()}
    y = scan(leaves, backend, delta_softplus=True)
    y.backward(grad)
    got = {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    assert_close(got, truth, 1e-15)  # the same sums in the same order


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("before", [(1, 1, 1), (2, 20, 1), (2, 1, 3), (1, 20, 3), (1, 20, 1)], ids=str)
def test_expanded_gradient(backend, before):
    """`y.sum().backward()` hands in a gradient of stride zero, `y.sum(-1)` one that has it for the channels alone."""
    tensors = make(2, 20, 3, 2)
    grad = torch.randn(before, dtype=torch.float64).expand(2, 20, 3)
    got = value_and_grads(tensors, backend, grad, delta_softplus=True)
    assert_close(got, value_and_grads(tensors, "reference", grad.contiguous(), delta_softplus=True), 1e-13)


def test_rows_of_a_large_batch_are_taken_in_groups(monkeypatch):
    tensors, grad = make(5, 20, 3, 2), torch.randn(5, 20, 3, dtype=torch.float64)
    whole = value_and_grads(tensors, "chunked", grad, delta_softplus=True)
    monkeypatch.setattr(chunked, "CACHE", 2 * 16 * 3 * 2)  # two rows at a time, the last alone
    assert len(list(chunked._row_groups(chunked.ScanInputs(*tensors.values(), None, None, True, False, None)))) == 3
    assert_close(value_and_grads(tensors, "chunked", grad, delta_softplus=True), whole, 1e-14)  # order of summation


def test_one_thread_and_two_give_the_same():
    tensors, grad = make(2, 40, 96, 16, torch.float32), torch.randn(2, 40, 96)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = value_and_grads(tensors, "chunked", grad, delta_softplus=True)
        torch.set_num_threads(2)
        two = value_and_grads(tensors, "chunked", grad, delta_softplus=True)
    finally:
        torch.set_num_threads(threads)
    # Two threads may cut a sum over tokens elsewhere: float32 roundings of it.
    assert_close(two, {name: t.double() for name, t in one.items()}, 1e-6)
    assert torch.equal(one["y"], two["y"])  # no sum of the forward is long enough to be cut


@pytest.mark.parametrize("backend", FASTER)
def test_the_same_call_gives_the_same_bits(backend):
    tensors, grad = make(2, 40, 8, 4, torch.float32), torch.randn(2, 40, 8)
    first, second = (value_and_grads(tensors, backend, grad, delta_softplus=True) for _ in range(2))
    assert_close(second, {name: t.double() for name, t in first.items()}, 0)


@pytest.mark.parametrize("backend", FASTER)
def test_inputs_stay_as_they_were(backend):
    tensors = make(2, 20, 3, 2)
    before = {name: t.clone() for name, t in tensors.items()}
    value_and_grads(tensors, backend, torch.ones(2, 20, 3), delta_softplus=True)
    scan(tensors, backend, delta_softplus=True)
    assert all(torch.equal(tensors[name], before[name]) for name in NAMES)


@pytest.mark.parametrize("backend", FASTER)
def test_only_some_inputs_need_a_gradient(backend):
    tensors, grad = make(2, 20, 3, 2), torch.randn(2, 20, 3, dtype=torch.float64)
    truth = value_and_grads(tensors, "reference", grad, delta_softplus=True)
    tensors["A"].requires_grad_()
    scan(tensors, backend, delta_softplus=True).backward(grad)
    assert distance(tensors["A"].grad, truth["A"]) < 1e-13  # float64, two orders of summation
    assert all(tensors[name].grad is None for name in NAMES if name != "A")


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("reverse", [False, True])
def test_twenty_thousand_tokens(backend, reverse):
    """Values stay finite, and the last tokens equal a scan of the last tokens: what is far away has decayed."""
    tensors = make(1, 20_000, 4, 2, torch.float32)
    tensors["A"] = tensors["A"].clamp(max=-0.5)
    y = scan(tensors, backend, delta_softplus=True, reverse=reverse)
    assert torch.isfinite(y).all()
    tail = slice(None, 500) if reverse else slice(-500, None)
    near = {name: t[:, tail] if t.ndim == 3 else t for name, t in in_double(tensors).items()}
    truth = scan(near, "reference", delta_softplus=True, reverse=reverse)
    last = slice(None, 100) if reverse else slice(-100, None)
    # Steps are 0.3 on average, A at most -0.5: 400 tokens decay by exp(-60). What remains is float32's error.
    assert distance(y[:, last], truth[:, last]) < 3e-6


# Autocast


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing_inside(backend):
    tensors, grad = make(2, 33, 4, 4, torch.float32), torch.randn(2, 33, 4)
    truth = value_and_grads(tensors, backend, grad, delta_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        y = scan(leaves, backend, delta_softplus=True)
    y.backward(grad)
    got = {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    assert_close(got, {name: t.double() for name, t in truth.items()}, 0)


@pytest.mark.parametrize("backend", FASTER)
def test_backward_inside_autocast_stays_float32(backend):
    tensors, grad = make(2, 33, 4, 4, torch.float32), torch.randn(2, 33, 4)
    truth = value_and_grads(tensors, backend, grad, delta_softplus=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_grads(tensors, backend, grad, delta_softplus=True)
    assert_close(got, {name: t.double() for name, t in truth.items()}, 0)


# One node for autograd, compile and export


def op_arguments(tensors, backend, boundaries=None, reverse=False):
    return (*(tensors[name] for name in NAMES), None, boundaries, True, reverse, None, backend, False, True)


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("options", [
    {},
    {"reverse": True, "absent": ("D", "z", "delta_bias")},
    {"boundaries": [0, 5, 20], "dtype": torch.bfloat16},
], ids=str)  # fmt: skip
def test_opcheck(backend, options):
    boundaries = torch.tensor(options["boundaries"]) if "boundaries" in options else None
    dtype, reverse = options.get("dtype", torch.float32), options.get("reverse", False)
    tensors = make(1, 20, 3, 2, dtype) | dict.fromkeys(options.get("absent", ()))
    arguments = op_arguments(tensors, backend, boundaries, reverse)
    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    torch.library.opcheck(torch.ops.longvision.selective_scan, leaves)

    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    y, _, states = torch.ops.longvision.selective_scan(*arguments)
    grads = torch.ones_like(y), None, states
    torch.library.opcheck(torch.ops.longvision.selective_scan_backward, (*grads, *arguments[:-2]))


def nodes_named(graph, name):
    return [node for node in graph.nodes if node.op == "call_function" and str(node.target).startswith(name)]


class Two(torch.nn.Module):
    """Two scans, one each way, of tensors held as parameters."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        tensors = make(1, 20, 3, 2, dtype)
        self.tensors = torch.nn.ParameterDict({name: tensors[name] for name in NAMES if name != "x"})

    def forward(self, x, cu_seqlens=None):
        options = {"delta_softplus": True, "cu_seqlens": cu_seqlens}
        tensors = {**self.tensors, "x": x}
        return scan(tensors, None, **options) + scan(tensors, None, reverse=True, **options)


@pytest.mark.parametrize("boundaries", [None, [0, 7, 20]])
def test_compile_sees_one_node_a_call(boundaries):
    counts = []

    def counting(module, _inputs):
        counts.append(len(nodes_named(module.graph, "longvision.selective_scan")))
        return module.forward

    model, x = Two(), torch.randn(1, 20, 3)
    boundaries = None if boundaries is None else torch.tensor(boundaries)
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend=counting)(x, boundaries)
    assert counts == [2]


@pytest.mark.parametrize("boundaries", [None, [0, 7, 20]])
def test_compiled_training_step_equals_eager(boundaries):
    model, x = Two(), torch.randn(1, 20, 3)
    boundaries = None if boundaries is None else torch.tensor(boundaries)
    model(x, boundaries).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch._dynamo.reset()
    y = torch.compile(model, fullgraph=True, backend="aot_eager")(x, boundaries)
    y.square().sum().backward()
    assert_close({name: p.grad for name, p in model.named_parameters()},
                 {name: g.double() for name, g in eager.items()}, 1e-6)  # float32 sums in another order  # fmt: skip
    assert torch.equal(y, model(x, boundaries))


def test_export_sees_one_node_a_call():
    model, x = Two().eval(), torch.randn(1, 20, 3)
    program = torch.export.export(model, (x,))
    assert len(nodes_named(program.graph, "longvision.selective_scan")) == 2
    assert torch.equal(program.module()(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_meta_tensors_have_the_shapes_of_real_ones(dtype):
    meta = {name: t.to("meta").requires_grad_() for name, t in make(2, 33, 3, 4, dtype).items()}
    y = scan(meta, None, delta_softplus=True)
    assert (y.shape, y.dtype, y.device.type) == ((2, 33, 3), dtype, "meta")
    y.sum().backward()
    assert all(t.grad.shape == t.shape and t.grad.dtype == t.dtype for t in meta.values())


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens, boundaries", [(33, None), (64, None), (130, None), (33, [0, 1, 33])])
def test_the_states_saved_have_the_shape_that_the_fake_says(backend, dtype, tokens, boundaries):
    """Each backend keeps them in a layout of its own."""
    tensors = make(1, tokens, 3, 4, dtype)
    boundaries = None if boundaries is None else torch.tensor(boundaries)
    real = op._selective_scan(*op_arguments(tensors, backend, boundaries))
    fake = op._selective_scan(*op_arguments({name: t.to("meta") for name, t in tensors.items()}, backend, boundaries))
    assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in fake]
    assert torch.isfinite(real[2]).all()  # slots that were left over are not left as they were found


@pytest.mark.parametrize("backend", FASTER)
@pytest.mark.parametrize("boundaries", [None, [0, 1, 33]])
def test_no_states_where_there_is_no_backward(monkeypatch, backend, boundaries):
    tensors = make(1, 33, 5, 4, torch.float32)
    boundaries = None if boundaries is None else torch.tensor(boundaries)
    y, _, states = op._selective_scan(*op_arguments(tensors, backend, boundaries)[:-1], False)
    with_states, *_ = op._selective_scan(*op_arguments(tensors, backend, boundaries))
    assert states.numel() == 0 and torch.equal(y, with_states)
    torch.library.opcheck(
        torch.ops.longvision.selective_scan, (*op_arguments(tensors, backend, boundaries)[:-1], False)
    )

    asked, original = [], op.MODULES[backend].forward
    noted = lambda inputs, states, *rest: (asked.append(states is not None), original(inputs, states, *rest))[1]  # noqa: E731
    monkeypatch.setattr(op.MODULES[backend], "forward", noted)
    arguments = tensors["x"], tensors["delta"], tensors["A"], tensors["B"], tensors["C"]
    selective_scan(*arguments, backend=backend)
    selective_scan(*arguments[:4], arguments[4].clone().requires_grad_(), backend=backend)
    with torch.no_grad():
        selective_scan(*arguments[:4], arguments[4].clone().requires_grad_(), backend=backend)
    assert asked == [False, True, False]


# Mistakes


@pytest.mark.parametrize("name, shape, expected", [
    ("delta", (2, 5, 4), r"delta of shape \(2, 5, 4\), expected \(2, 5, 3\)"),
    ("A", (4, 2), r"A of shape \(4, 2\), expected \(3, 2\)"),
    ("B", (2, 5, 3), r"B of shape \(2, 5, 3\), expected \(2, 5, 2\)"),
    ("B", (1, 5, 2), r"B of shape \(1, 5, 2\), expected \(2, 5, 2\)"),
    ("C", (2, 2, 5), r"C of shape \(2, 2, 5\), expected \(2, 5, 2\)"),
    ("D", (1,), r"D of shape \(1,\), expected \(3,\)"),
    ("D", (3, 1), r"D of shape \(3, 1\), expected \(3,\)"),
    ("z", (2, 1, 3), r"z of shape \(2, 1, 3\), expected \(2, 5, 3\)"),
    ("delta_bias", (2,), r"delta_bias of shape \(2,\), expected \(3,\)"),
    ("x", (5, 3), r"x of shape \(5, 3\)"),
    ("A", (2,), r"A of shape \(2,\)"),
])  # fmt: skip
def test_a_wrong_shape_is_named(name, shape, expected):
    with pytest.raises(ValueError, match=expected):
        scan(make(2, 5, 3, 2) | {name: -torch.ones(shape)}, None)


def test_no_tokens():
    with pytest.raises(ValueError, match="no tokens"):
        scan(make(2, 0, 3, 2), None)


@pytest.mark.parametrize("batch, boundaries, expected", [
    (2, [0, 5], "batch of one"),
    (1, [0], "at least two"),
    (1, [[0, 5]], "cu_seqlens of shape"),
    (1, [0.0, 5.0], "integers"),
    (1, [0, 4], "number of tokens, 5"),
    (1, [1, 5], "rise from 0"),
    (1, [0, 3, 3, 5], "no empty sequence"),
    (1, [0, 4, 2, 5], "rise from 0"),
])  # fmt: skip
def test_boundaries_that_do_not_pack(batch, boundaries, expected):
    with pytest.raises(ValueError, match=expected):
        scan(make(batch, 5, 3, 2), None, cu_seqlens=torch.tensor(boundaries))


@pytest.mark.parametrize("backend", FASTER)
def test_gradients_of_permuted_inputs_lie_as_the_fake_says(backend):
    tensors = {name: t.transpose(1, 2).contiguous().transpose(1, 2) if t.ndim == 3 else t
               for name, t in make(2, 9, 4, 3, torch.float32).items()}  # fmt: skip
    y, _, states = torch.ops.longvision.selective_scan(*op_arguments(tensors, backend))
    arguments = (torch.ones_like(y), None, states, *op_arguments(tensors, backend)[:-2])
    torch.library.opcheck(torch.ops.longvision.selective_scan_backward, arguments)
    kept = backend == "cpu"  # of x, delta and z: see test_selective_scan_layout.py
    found = torch.ops.longvision.selective_scan_backward(*arguments)
    assert [g.is_contiguous() for g in found[:-1]] == [not (kept and i in (0, 1, 6)) for i in range(8)]
    permuted = torch.randn(2, 4, 9).transpose(1, 2)
    grads = torch.ops.longvision.selective_scan_backward(permuted, *arguments[1:])
    truth = torch.ops.longvision.selective_scan_backward(permuted.contiguous(), *arguments[1:])
    # chunked may sum in another order: float32
    assert all((a - b).abs().max() <= 1e-6 * b.abs().max() for a, b in zip(grads[:-1], truth[:-1]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_slope_of_softplus_at_zero_is_a_half(backend):
    """Where a kink written as max(x, 0) has none. Half-precision steps meet their bias there every now and then."""
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64, requires_grad=True)
    selective_scan(one, zero, -one[0], one, one, delta_softplus=True, backend=backend).sum().backward()
    assert abs(zero.grad.item() - 0.5) < 1e-15  # float64
