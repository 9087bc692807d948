"""The scan's kernels in C++ against the reference in float64: output and every gradient, in each dtype they take."""

import ctypes
from itertools import accumulate

import pytest
import torch

from longvision.ops import selective_scan
from support.scan_cases import (
    NAMES,
    PER_TOKEN,
    assert_identical,
    assert_true,
    make,
    needs_compiler,
    scan,
    value_and_grads,
)

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])


def check(tensors, **options):
    grad = torch.randn_like(tensors["x"])
    assert_true(tensors, grad, value_and_grads(tensors, "cpu", grad, **options), **options)


@each_dtype
@both_ways
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 63, 64, 65, 197])
def test_lengths(dtype, reverse, tokens):
    """64 tokens are one piece."""
    check(make(2, tokens, 5, 4, dtype), delta_softplus=True, reverse=reverse)


@pytest.mark.parametrize(
    ("dtype", "reverse"), [(torch.float64, True), (torch.float32, False), (torch.bfloat16, True)], ids=str
)
def test_many_pieces(dtype, reverse):
    check(make(1, 1000, 5, 4, dtype), delta_softplus=True, reverse=reverse)


@each_dtype
@pytest.mark.parametrize("width, states", [
    (1, 1), (1, 5), (3, 4), (3, 64), (15, 3), (15, 16), (16, 5), (16, 4), (17, 1), (17, 5), (37, 16), (37, 3),
    (64, 64), (64, 4), (80, 5), (80, 1),
])  # fmt: skip
def test_widths_and_states(dtype, width, states):
    """A vector has 2 to 16 channels, a task four vectors; states are taken four at a time."""
    check(make(2, 67, width, states, dtype), delta_softplus=True)


@each_dtype
@both_ways
@pytest.mark.parametrize("lengths", [[1, 63, 64, 65, 130], [130, 65, 64, 63, 1], [1] * 5, [64, 64], [197]], ids=str)
def test_packed(dtype, reverse, lengths):
    boundaries = torch.tensor([0, *accumulate(lengths)])
    check(make(1, sum(lengths), 19, 5, dtype), delta_softplus=True, reverse=reverse, cu_seqlens=boundaries)


@each_dtype
@pytest.mark.parametrize("present", [
    *(tuple(i == j for j in range(4)) for i in range(4)), *(tuple(i != j for j in range(4)) for i in range(4)),
    (False,) * 4, (True,) * 4,
], ids=str)  # fmt: skip
def test_optional_arguments(dtype, present):
    D, z, bias, softplus = present
    check(make(2, 70, 18, 3, dtype, D=D, z=z, bias=bias, softplus=softplus), delta_softplus=softplus)


@each_dtype
@pytest.mark.parametrize("rate", [-64.0, -1.0, -1e-3])
@pytest.mark.parametrize("raw", [-30.0, 30.0, "both"])
@pytest.mark.parametrize("constant", [False, True])
def test_extreme_steps_and_rates(dtype, rate, raw, constant):
    """Steps of 9e-14 and of 30, decays from nothing to all."""
    tensors = make(2, 70, 17, 4, dtype, bias=False, D=False)
    tensors["A"] = torch.full_like(tensors["A"], rate)
    signs = torch.where(torch.rand(2, 70, 17) < 0.5, -30.0, 30.0)
    tensors["delta"] = (signs if raw == "both" else torch.full_like(signs, raw)).to(dtype)
    if constant:
        tensors |= {name: torch.full_like(tensors[name], 0.7) for name in ("x", "B", "C", "z")}
    check(tensors, delta_softplus=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_infinite_steps_and_gates_are_as_torch_has_them(dtype):
    """softplus(inf) is inf, silu(-inf) NaN; what they do not touch stays finite."""
    tensors = make(1, 5, 4, 4, dtype, bias=False)
    tensors["delta"][0, 2, 0], tensors["z"][0, 2, 1], tensors["z"][0, 2, 2] = torch.inf, -torch.inf, torch.inf
    got, truth = (scan(tensors, backend, delta_softplus=True) for backend in ("cpu", "reference"))
    torch.testing.assert_close(got, truth, equal_nan=True)
    assert got[0, 2].isfinite().tolist() == [False, False, False, True]


@both_ways
def test_gradcheck(reverse):
    tensors = make(1, 70, 2, 2)  # more than a piece
    leaves = [tensors[name].requires_grad_() for name in NAMES]
    boundaries = torch.tensor([0, 3, 70])

    def packed(*leaves):
        return selective_scan(*leaves, delta_softplus=True, reverse=reverse, cu_seqlens=boundaries, backend="cpu")

    assert torch.autograd.gradcheck(packed, leaves, fast_mode=True)


def wide(*tensors):
    """The same tensors as slices of a wider one, with channels of no one's before, between and behind."""
    filling = torch.full_like(tensors[0][..., :3], torch.nan)
    parts = [filling]
    for tensor in tensors:
        parts += [tensor, filling]
    whole, first, slices = torch.cat(parts, -1), 3, []
    for tensor in tensors:
        slices.append(whole[..., first : first + tensor.shape[-1]])
        first += tensor.shape[-1] + 3
    return slices


def permuted(tensor):
    """The same tensor, its tokens beside each other in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


@each_dtype
@pytest.mark.parametrize("layout", [
    "slices", "permuted", "batch behind tokens", "expanded batch", "expanded tokens", "expanded channels",
])  # fmt: skip
def test_any_strides_give_the_same_bits(dtype, layout):
    tensors, grad = make(2, 70, 18, 4, dtype), torch.randn(2, 70, 18).to(dtype)
    if layout.startswith("expanded"):
        own = {"batch": slice(1), "tokens": (slice(None), slice(1)), "channels": (..., slice(1))}[layout.split()[1]]
        tensors |= {name: tensors[name][own].contiguous().expand_as(tensors[name]) for name in PER_TOKEN}
        grad = grad[own].contiguous().expand_as(grad)
    strided = dict(tensors)
    if layout == "slices":
        strided["x"], strided["z"] = wide(tensors["x"], tensors["z"])
        strided["B"], strided["delta"], strided["C"] = wide(tensors["B"], tensors["delta"], tensors["C"])
    elif layout == "permuted":
        strided |= {name: permuted(tensors[name]) for name in (*PER_TOKEN, "A")}
        grad = permuted(grad)
    elif layout == "batch behind tokens":
        strided |= {name: tensors[name].transpose(0, 1).contiguous().transpose(0, 1) for name in PER_TOKEN}
    assert not strided["x"].is_contiguous()

    truth = value_and_grads({name: t.contiguous() for name, t in tensors.items()}, "cpu", grad, delta_softplus=True)
    leaves = {name: t.detach().requires_grad_() for name, t in strided.items()}
    y = scan(leaves, "cpu", delta_softplus=True)
    y.backward(grad)
    assert_identical({"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}, truth)


@each_dtype
def test_the_gradient_of_a_sum_has_no_strides(dtype):
    tensors = make(2, 70, 18, 4, dtype)
    truth = value_and_grads(tensors, "cpu", torch.ones(2, 70, 18), delta_softplus=True)
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    y = scan(leaves, "cpu", delta_softplus=True)
    y.sum().backward()
    assert_identical({"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}, truth)


@each_dtype
@both_ways
@pytest.mark.parametrize("boundaries", [None, [0, 1, 66, 130]])
def test_threads_and_repeats_give_the_same_bits(threads, dtype, reverse, boundaries):
    batch = 2 if boundaries is None else 1
    tensors, grad = make(batch, 130, 150, 5, dtype), torch.randn(batch, 130, 150)  # several tasks a row
    options = {"delta_softplus": True, "reverse": reverse}
    options["cu_seqlens"] = None if boundaries is None else torch.tensor(boundaries)
    threads(1)
    one = value_and_grads(tensors, "cpu", grad, **options)
    for count in (1, 2, 2, 3):
        threads(count)
        assert_identical(value_and_grads(tensors, "cpu", grad, **options), one)


SCANS = """
import ctypes, sys, torch
fill = int(sys.argv[2])  # new memory holds this byte's complement; 0: as it comes
M_PERTURB = -6
assert ctypes.CDLL(None).mallopt(M_PERTURB, fill)
assert not fill or (torch.empty(1000, dtype=torch.uint8) == 255 - fill).all()
from longvision.ops import selective_scan
torch.manual_seed(0)
results = []
for dtype, states in ((torch.float32, 5), (torch.float64, 3), (torch.bfloat16, 16)):
    for boundaries in (None, torch.tensor([0, 1, 66, 130])):
        leaves = [torch.randn(*s).to(dtype).requires_grad_() for s in ((1, 130, 37),) * 2 + ((1, 130, states),) * 2]
        x, delta, B, C = leaves
        A = (-torch.rand(37, states) - 0.1).requires_grad_()
        y = selective_scan(x, delta, A, B, C, z_BME=x, delta_softplus=True, cu_seqlens=boundaries, backend="cpu")
        results += [y, *torch.autograd.grad(y.float().square().sum(), [*leaves, A])]
torch.save([t.detach() for t in results], sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc fills memory")
def test_what_memory_held_before_does_not_matter(python, tmp_path):
    """The kernels' own memory too: glibc fills all that it hands out with 0x7f7f7f7f, 3.4e38, or with -5e32."""
    results = []
    for fill in ("0", "128", "13"):
        done = python(SCANS, tmp_path / fill, fill)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(tmp_path / fill))
    for other in results[1:]:
        assert all(torch.isfinite(a).all() and torch.equal(a, b) for a, b in zip(results[0], other))


def test_not_a_number_is_not_hidden():
    """What comes in as NaN spoils its channel from there on, and no other."""
    tensors = make(1, 100, 20, 4, torch.float32)
    for name in ("x", "delta", "z"):
        spoiled = tensors[name].clone()
        spoiled[0, 70, 3] = torch.nan
        y = scan(tensors | {name: spoiled}, "cpu", delta_softplus=True)
        wrong = torch.zeros(1, 100, 20, dtype=torch.bool)
        wrong[0, 70 if name == "z" else slice(70, None), 3] = True
        assert torch.equal(y.isnan(), wrong), name


@both_ways
def test_a_hundred_thousand_tokens(reverse):
    tensors = make(1, 100_000, 16, 4, torch.float32)
    got = value_and_grads(tensors, "cpu", torch.ones(1, 1, 1).expand(1, 100_000, 16), delta_softplus=True)
    assert all(torch.isfinite(t).all() for t in got.values())


def test_states_that_never_decay_add_up():
    """With A = 0 the scan is a running sum, whatever the parts."""
    x = torch.ones(1, 1000, 3)
    one = torch.ones(1, 1000, 1)
    y = selective_scan(x, x, torch.zeros(3, 1), one, one, backend="cpu")
    assert torch.equal(y, torch.arange(1.0, 1001)[None, :, None].expand(1, 1000, 3))  # whole numbers are exact


def test_mixed_precisions(python):
    """x in float32 beside B in float64: computed in the higher, given in x's. In a process of its own: it may crash."""
    done = python("""
import torch
from longvision.ops import selective_scan
x, delta, C = (torch.randn(1, 4000, 16) for _ in range(3))
B, A = torch.randn(1, 4000, 16, dtype=torch.float64), -torch.rand(16, 16) - 0.1
y, truth = (selective_scan(x, delta, A, B, C, delta_softplus=True, backend=b) for b in ("cpu", "reference"))
assert y.dtype == torch.float32
torch.testing.assert_close(y, truth, rtol=1e-4, atol=1e-4)
""")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"


def test_wrong_boundaries_in_a_compiled_graph_are_refused(python):
    """Their values are not known when a graph is traced, but when it runs. In a process of its own: it may crash."""
    done = python("""
import torch
from longvision.ops import selective_scan
def scan(x, B, boundaries):
    return selective_scan(x, x, -torch.ones(8, 4), B, B, delta_softplus=True, cu_seqlens=boundaries)
x, B = torch.randn(1, 100, 8), torch.randn(1, 100, 4)
compiled = torch.compile(scan, fullgraph=True, backend="eager")
for wrong in ([0, 50, 1_000_000], [0, 80, 40, 100], [-5, 100]):
    try:
        compiled(x, B, torch.tensor(wrong))
    except (ValueError, RuntimeError) as error:
        assert "must rise from 0 to the number of tokens, 100" in str(error), error
    else:
        raise AssertionError(f"{wrong} were taken")
""")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"


@both_ways
def test_rows_of_a_batch_beyond_the_heap_are_each_their_own(reverse):
    """What is large comes from another place in memory, with the same numbers in it."""
    tensors = make(2, 5000, 128, 4, torch.float32)  # 5 MiB each
    grad = torch.randn(2, 5000, 128)
    options = {"delta_softplus": True, "reverse": reverse}
    whole = value_and_grads(tensors, "cpu", grad, **options)
    for row in (slice(0, 1), slice(1, 2)):
        alone = {name: t[row] if name in PER_TOKEN else t for name, t in tensors.items()}
        alone = value_and_grads(alone, "cpu", grad[row], **options)
        assert_identical({n: whole[n][row] for n in ("y", *PER_TOKEN)}, {n: alone[n] for n in ("y", *PER_TOKEN)})
