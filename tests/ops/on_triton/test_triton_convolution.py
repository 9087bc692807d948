"""The convolution's kernels against the sum of shifted copies in float64: output and every gradient."""

import pytest
import torch

from longvision.ops import causal_conv1d
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from support.convolution_cases import make
from support.layouts import LAYOUTS, laid_out
from support.triton_cases import TOLERANCE, assert_norms

pytestmark = [pytest.mark.usefixtures("poison", "chosen")]

NAMES = ("x", "weight", "bias")
SUMMED = ("weight", "bias")
each_way = pytest.mark.parametrize("reverse", [False, True])


@pytest.fixture
def entered(monkeypatch):
    """The widths that the kernels were called with: nothing else computes."""
    from longvision.ops.kernels.triton import convolution

    seen = []
    for name in ("forward", "backward"):
        original = getattr(convolution, name)
        monkeypatch.setattr(convolution, name, lambda *a, f=original, n=name, **o: (seen.append(n), f(*a, **o))[1])
    return seen


def value_and_grads(function, tensors, grad, **options):
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    y.backward(grad)
    grads = {name: leaf.grad for name, leaf in zip(NAMES, leaves) if leaf is not None}
    return {"y": y.detach(), **grads}


def check(device, tensors, cu_seqlens=None, grad=None, **options):
    x, boundaries = tensors[0], None if cu_seqlens is None else torch.tensor(cu_seqlens)
    grad = torch.randn(x.shape).to(x.dtype) if grad is None else grad
    there = [None if t is None else t.to(device) for t in tensors]
    options["cu_seqlens"] = None if boundaries is None else boundaries.to(device)
    got = value_and_grads(causal_conv1d, there, grad.to(device), **options)
    options["cu_seqlens"] = boundaries
    double = [None if t is None else t.double() for t in tensors]
    truth = value_and_grads(causal_conv1d_reference, double, grad.double(), **options)
    assert all(t.dtype == x.dtype for t in got.values())
    assert_norms({name: t.cpu() for name, t in got.items()}, truth, TOLERANCE, SUMMED)


@pytest.mark.parametrize(("taps", "silu", "reverse"), [
    (1, True, False), (2, False, True), (3, True, True), (4, True, False), (4, False, False), (8, True, True),
    (8, False, False),
])  # fmt: skip
def test_taps(device, entered, taps, silu, reverse):
    check(device, make(2, 11, 5, taps, torch.float32), silu=silu, reverse=reverse)
    assert entered == ["forward", "backward"]


@pytest.mark.parametrize(("tokens", "reverse"), [(1, False), (2, True), (8, False), (8, True), (9, True), (18, False)])
def test_boundaries_of_runs(device, chunk, tokens, reverse):
    chunk(8)
    check(device, make(1, tokens, 3, 4, torch.float32), silu=True, reverse=reverse)


@pytest.mark.parametrize("width", [1, 64, 70])
def test_widths(device, width):
    check(device, make(2, 5, width, 4, torch.float32), silu=True)


@pytest.mark.parametrize("silu", [False, True])
def test_without_a_bias(device, silu):
    check(device, [*make(1, 9, 5, 4, torch.float32)[:2], None], silu=silu)


@pytest.mark.slow
def test_a_run_of_its_own_length(device):
    check(device, make(1, 66, 3, 4, torch.float32), [0, 64, 66], silu=True, reverse=True)


@pytest.mark.parametrize(("boundaries", "taps", "reverse"), [
    ([0, 1, 2, 5, 10], 4, False), ([0, 1, 2, 5, 10], 4, True), ([0, 3, 10], 2, True), ([0, 10], 2, False),
], ids=str)  # fmt: skip
def test_packed(device, boundaries, taps, reverse):
    check(device, make(1, 10, 5, taps, torch.float32), boundaries, silu=True, reverse=reverse)


@each_way
@pytest.mark.parametrize("boundaries", [[0, 8, 13], [0, 7, 13], [0, 9, 13]], ids=str)
def test_packed_with_borders_beside_those_of_a_run(device, chunk, boundaries, reverse):
    chunk(8)
    check(device, make(1, 13, 3, 4, torch.float32), boundaries, silu=True, reverse=reverse)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_once(device, dtype):
    check(device, make(1, 20, 5, 4, dtype), silu=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(device, layout):
    x, weight, bias = make(2, 9, 4, 3, torch.float32)
    grad = torch.randn(2, 4, 9).transpose(1, 2)
    strided = weight.t().contiguous().t(), torch.stack([bias, bias + 1], 1)[:, 0]
    assert not any(t.is_contiguous() for t in strided)
    check(device, [laid_out(x, layout), *strided], grad=grad, silu=True)


@each_way
def test_the_gradient_is_added_to_what_there_is(device, chunk, reverse):
    from longvision.ops.kernels.triton import convolution

    chunk(8)
    x, weight, bias = (t.to(device) for t in make(1, 11, 5, 4, torch.float32))
    grad, before = torch.randn(1, 11, 5, device=device), torch.randn(1, 11, 10, device=device)
    alone, added = torch.empty_like(before), before.clone()
    arguments = grad, x, weight, bias, True, reverse, None
    first = convolution.backward(*arguments, alone[..., :5])
    second = convolution.backward(*arguments, added[..., :5], add=True)
    torch.testing.assert_close(added[..., :5], before[..., :5] + alone[..., :5], rtol=1e-6, atol=1e-6)  # float32
    assert torch.equal(added[..., 5:], before[..., 5:])
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_the_same_bits_again(device, chunk):
    chunk(8)
    tensors = [t.to(device) for t in make(1, 18, 5, 4, torch.float32)]
    grad = torch.randn(1, 18, 5, device=device)
    first, second = (value_and_grads(causal_conv1d, tensors, grad, silu=True) for _ in range(2))
    assert all(torch.equal(second[name], first[name]) for name in first)


@each_way
def test_not_a_number_stays_in_its_packed_sequence(device, reverse):
    tensors = make(1, 9, 3, 4, torch.float32)
    tensors[0][0, 4, 1] = torch.nan
    there, boundaries = [t.to(device) for t in tensors], torch.tensor([0, 3, 6, 9], device=device)
    grad = torch.ones(1, 9, 3, device=device)
    got = value_and_grads(causal_conv1d, there, grad, silu=True, reverse=reverse, cu_seqlens=boundaries)
    for name in ("y", "x"):
        assert torch.isfinite(got[name][:, :3]).all() and torch.isfinite(got[name][:, 6:]).all()
    assert got["y"][:, 3:6].isnan().any()


@pytest.mark.parametrize("options", [{"bias": False}, {"boundaries": [0, 2, 3], "dtype": torch.bfloat16}], ids=str)
def test_opcheck(device, options):
    tensors = [t.to(device) for t in make(1, 3, 3, 3, options.get("dtype", torch.float32))]
    x, weight, bias = tensors if options.get("bias", True) else [*tensors[:2], None]
    cu_seqlens = torch.tensor(options["boundaries"], device=device) if "boundaries" in options else None
    rest = cu_seqlens, True, False, "triton"
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
    torch.library.opcheck(torch.ops.longvision.causal_conv1d, (*leaves, *rest))
    arguments = torch.ones_like(x), x, weight, bias, *rest
    torch.library.opcheck(torch.ops.longvision.causal_conv1d_backward, arguments)


def test_more_taps_than_the_kernels_take(device, entered):
    check(device, make(1, 20, 3, 9, torch.float32), silu=True)
    assert entered == []


@pytest.mark.gpu
@each_way
@pytest.mark.parametrize("batch, tokens, width", [(8, 197, 384), (1, 6085, 768), (128, 197, 384)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_large(cuda, batch, tokens, width, dtype, tolerance, reverse):
    tensors = [t.to(cuda) for t in make(batch, tokens, width, 4, dtype)]
    grad = torch.randn(batch, tokens, width).to(cuda, dtype)
    options = {"silu": True, "reverse": reverse}
    got, again = (value_and_grads(causal_conv1d, tensors, grad, **options) for _ in range(2))
    assert all(torch.equal(again[name], got[name]) for name in got)
    truth = value_and_grads(causal_conv1d_reference, [t.double() for t in tensors], grad.double(), **options)
    assert_norms(got, truth, {dtype: tolerance})
