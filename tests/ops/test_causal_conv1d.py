"""The convolution against torch's own with padding, and its life as one graph node."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longvision.ops import causal_conv1d
from longvision.ops.causal_conv1d import chunked, cpu
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from longvision.ops.common import choose_backend
from support.convolution_cases import make
from support.layouts import LAYOUTS, laid_out
from support.scan_cases import needs_compiler

pytestmark = pytest.mark.usefixtures("poison")

BOTH = pytest.mark.parametrize("function", [causal_conv1d, causal_conv1d_reference])


def torch_conv(x, weight, bias, silu=False, reverse=False, cu_seqlens=None):
    """torch's convolution, padded on both sides and cut on the right; a reversed one flips, packed ones are cut up."""
    if cu_seqlens is not None:
        parts = [torch_conv(x[:, a:b], weight, bias, silu, reverse) for a, b in pairwise(cu_seqlens.tolist())]
        return torch.cat(parts, dim=1)
    x = x.flip(1) if reverse else x
    width, taps = weight.shape
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=taps - 1, groups=width)
    y = y[:, :, : x.shape[1]].transpose(1, 2)
    y = y.flip(1) if reverse else y
    return F.silu(y) if silu else y


def value_and_grads(function, tensors, grad, **options):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, **options)
    y.backward(grad)
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_close(got, truth, tolerance):
    """Largest difference at most that part of the largest true value."""
    assert len(got) == len(truth)
    for i, (g, t) in enumerate(zip(got, truth)):
        assert g.shape == t.shape and torch.isfinite(g).all()
        assert (g.double() - t).abs().max() <= tolerance * t.abs().max(), i


@BOTH
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 197])
def test_equals_torch(function, reverse, silu, taps, tokens):
    tensors, grad = make(2, tokens, 3, taps), torch.randn(2, tokens, 3, dtype=torch.float64)
    truth = value_and_grads(torch_conv, tensors, grad, silu=silu, reverse=reverse)
    got = value_and_grads(function, tensors, grad, silu=silu, reverse=reverse)
    assert_close(got, truth, 1e-13)  # float64, another order of summation over 394 tokens


@BOTH
def test_a_hand_computed_convolution(function):
    x, weight = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1), torch.tensor([[10.0, 1.0]])
    assert function(x, weight).flatten().tolist() == [1, 2 + 10 * 1, 4 + 10 * 2]
    assert function(x, weight, reverse=True).flatten().tolist() == [1 + 10 * 2, 2 + 10 * 4, 4]
    packed = function(x, weight, torch.ones(1), cu_seqlens=torch.tensor([0, 1, 3])).flatten()
    assert packed.tolist() == [1 + 1, 2 + 1, 4 + 10 * 2 + 1]


@BOTH
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("boundaries", [[0, 30], [0, 1, 2, 4, 7, 11, 30], [0, 16, 30]])
def test_packed_equals_one_after_the_other(function, reverse, silu, boundaries):
    tensors, grad = make(1, 30, 3, 4), torch.randn(1, 30, 3, dtype=torch.float64)
    options = {"silu": silu, "reverse": reverse, "cu_seqlens": torch.tensor(boundaries, dtype=torch.int32)}
    truth = value_and_grads(torch_conv, tensors, grad, **options)
    assert_close(value_and_grads(function, tensors, grad, **options), truth, 1e-13)  # as above


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 40),
    width=st.integers(1, 5),
    taps=st.integers(1, 6),
    bias=st.booleans(),
    silu=st.booleans(),
    reverse=st.booleans(),
    cuts=st.none() | st.sets(st.integers(1, 39)),
)
def test_any_shape_and_options(batch, tokens, width, taps, bias, silu, reverse, cuts):
    boundaries = None
    if cuts is not None:
        batch, boundaries = 1, torch.tensor([0, *sorted(c for c in cuts if c < tokens), tokens])
    x, weight, offset = make(batch, tokens, width, taps)
    tensors, grad = (x, weight, offset if bias else None), torch.randn_like(x)
    options = {"silu": silu, "reverse": reverse, "cu_seqlens": boundaries}
    truth = value_and_grads(torch_conv, tensors, grad, **options)
    # Float64; sums that happen to cancel to little lose some digits more than in the tests above.
    assert_close(value_and_grads(causal_conv1d, tensors, grad, **options), truth, 1e-11)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradcheck(reverse):
    leaves = [t.requires_grad_() for t in make(1, 11, 2, 4)]
    boundaries = torch.tensor([0, 2, 11])
    assert torch.autograd.gradcheck(lambda *t: causal_conv1d(*t, True, reverse, boundaries), leaves)


@pytest.mark.parametrize("silu", [False, True])
def test_float32_is_near_float64(silu):
    tensors, grad = make(2, 577, 4, 4, torch.float32), torch.randn(2, 577, 4)
    truth = value_and_grads(torch_conv, [t.double() for t in tensors], grad.double(), silu=silu)
    # A unit roundoff is 6e-8; the filter's gradient sums 1,154 terms that cancel.
    assert_close(value_and_grads(causal_conv1d, tensors, grad, silu=silu), truth, 2e-6)


@pytest.mark.parametrize("dtype, unit", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("reverse", [False, True])
def test_half_precision(dtype, unit, reverse):
    """`unit` is the largest relative error of one rounding."""
    tensors, grad = make(2, 63, 4, 4, dtype), torch.randn(2, 63, 4).to(dtype)
    doubles = [t.double() for t in tensors]

    y, *grads = value_and_grads(causal_conv1d, tensors, grad, reverse=reverse)
    truth, *true_grads = value_and_grads(torch_conv, doubles, grad.double(), reverse=reverse)
    assert y.dtype == dtype and [g.dtype for g in grads] == [dtype] * 3
    # The sum is taken in float32 and rounded once, here and in dx.
    for got, expected in ((y, truth), (grads[0], true_grads[0])):
        assert ((got.double() - expected).abs() <= unit * expected.abs() + 1e-6).all()
    # In the sums over 126 tokens each product is rounded, and the result once more: far below the two roundings that
    # it would take if all errors had one sign.
    assert_close(grads[1:], true_grads[1:], 2 * unit)

    y, *grads = value_and_grads(causal_conv1d, tensors, grad, reverse=reverse, silu=True)
    truth, *true_grads = value_and_grads(torch_conv, doubles, grad.double(), reverse=reverse, silu=True)
    # SiLU is taken of a rounded sum, and rounded: two roundings, the first amplified at most by 1.1 x near x = 5.
    assert_close([y, *grads], [truth, *true_grads], 3 * unit)


def test_activations_in_bf16_with_parameters_in_float32():
    """What the mixer hands in under autocast."""
    x, weight, bias = make(2, 40, 4, 4, torch.float32)
    x, grad = x.bfloat16(), torch.randn(2, 40, 4).bfloat16()
    y, dx, dweight, dbias = value_and_grads(causal_conv1d, (x, weight, bias), grad, silu=True)
    assert [t.dtype for t in (y, dx, dweight, dbias)] == [torch.bfloat16] * 2 + [torch.float32] * 2
    truth = value_and_grads(torch_conv, (x.double(), weight.double(), bias.double()), grad.double(), silu=True)
    assert_close([y, dx, dweight, dbias], truth, 3 * 2**-8)  # two roundings to bf16, as above


def test_half_precision_sums_do_not_overflow():
    """Two products of 40,000 each cancel: float16, whose largest number is 65,504, would be infinite in between."""
    x = torch.full((1, 3, 1), 200.0, dtype=torch.float16)
    weight = torch.tensor([[200.0, 200.0, -399.0]], dtype=torch.float16)
    assert causal_conv1d(x, weight).flatten().tolist()[2] == 200


def test_inputs_need_not_be_contiguous():
    (x, weight, bias), grad = make(2, 21, 4, 4), torch.randn(2, 4, 21, dtype=torch.float64).transpose(1, 2)
    truth = value_and_grads(causal_conv1d, (x, weight, bias), grad.contiguous(), silu=True)
    half = torch.cat([x, x + 1], -1).chunk(2, -1)[0].detach().requires_grad_()
    filters = weight.T.contiguous().T.detach().requires_grad_()
    assert not half.is_contiguous() and not filters.is_contiguous()
    y = causal_conv1d(half, filters, bias, silu=True)
    y.backward(grad)
    assert_close([y.detach(), half.grad, filters.grad], truth[:3], 1e-15)  # the same sums in the same order


def test_inputs_stay_as_they_were():
    tensors = make(2, 9, 3, 4)
    before = [t.clone() for t in tensors]
    value_and_grads(causal_conv1d, tensors, torch.ones(2, 9, 3, dtype=torch.float64), silu=True)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"silu": True, "reverse": True}, {"boundaries": [0, 3, 9]}], ids=str
)
def test_opcheck(options):
    x, weight, bias = make(1, 9, 3, 4, torch.float32)
    boundaries = torch.tensor(options["boundaries"]) if "boundaries" in options else None
    flags = boundaries, options.get("silu", False), options.get("reverse", False), choose_backend(None, "cpu", x.dtype)
    tensors = [x, weight, bias if options.get("bias", True) else None]
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    torch.library.opcheck(torch.ops.longvision.causal_conv1d, (*leaves, *flags))
    torch.library.opcheck(torch.ops.longvision.causal_conv1d_backward, (torch.ones_like(x), *tensors, *flags))


def test_compile_and_export_see_one_node():
    class Model(torch.nn.Module):
        def forward(self, x, weight, bias):
            return causal_conv1d(x, weight, bias, silu=True)

    def count(graph):
        return sum(
            n.op == "call_function" and str(n.target).startswith("longvision.causal_conv1d") for n in graph.nodes
        )

    counts = []

    def counting(module, _inputs):
        counts.append(count(module.graph))
        return module.forward

    inputs = make(2, 9, 3, 4, torch.float32)
    torch._dynamo.reset()
    y = torch.compile(Model(), fullgraph=True, backend=counting)(*inputs)
    program = torch.export.export(Model(), inputs)
    assert counts == [1] and count(program.graph) == 1
    assert torch.equal(y, Model()(*inputs)) and torch.equal(program.module()(*inputs), y)


def test_meta_tensors_have_the_shapes_of_real_ones():
    tensors = [t.to("meta").requires_grad_() for t in make(2, 9, 3, 4, torch.bfloat16)]
    y = causal_conv1d(*tensors)
    y.sum().backward()
    assert (y.shape, y.dtype) == ((2, 9, 3), torch.bfloat16)
    assert all(t.grad.shape == t.shape and t.grad.dtype == t.dtype for t in tensors)


@pytest.mark.parametrize("x, weight, bias, expected", [
    ((5, 3), (3, 4), None, r"x of shape \(5, 3\)"),
    ((1, 5, 3), (3, 1, 4), None, r"weight of shape \(3, 1, 4\)"),
    ((1, 5, 3), (4, 4), None, r"weight of shape \(4, 4\)"),
    ((1, 5, 3), (3, 4), (4,), r"bias of shape \(4,\), expected \(3,\)"),
])  # fmt: skip
def test_a_wrong_shape_is_named(x, weight, bias, expected):
    with pytest.raises(ValueError, match=expected):
        causal_conv1d(torch.ones(x), torch.ones(weight), None if bias is None else torch.ones(bias))


def test_boundaries_that_do_not_pack():
    x, weight, _ = make(1, 5, 3, 4)
    for boundaries in ([0, 4], [0, 3, 3, 5], [1, 5]):
        with pytest.raises(ValueError, match=r"must rise from 0 to the number of tokens, 5"):
            causal_conv1d(x, weight, cu_seqlens=torch.tensor(boundaries))
    with pytest.raises(ValueError, match="batch of one"):
        causal_conv1d(torch.cat([x, x]), weight, cu_seqlens=torch.tensor([0, 5]))


def test_no_token_sees_what_comes_after_it():
    """Changing the last token moves no output before it; reversed, changing the first moves none behind it."""
    x, weight, bias = make(1, 12, 2, 4)
    for reverse, changed in ((False, 8), (True, 3)):
        other = x.clone()
        other[:, changed] += 1
        moved = causal_conv1d(other, weight, bias, reverse=reverse) != causal_conv1d(x, weight, bias, reverse=reverse)
        assert np.flatnonzero(moved[0].all(-1)).tolist() == ([0, 1, 2, 3] if reverse else [8, 9, 10, 11])


def test_rows_of_a_large_batch_are_taken_in_groups(monkeypatch):
    """Two at a time, the last alone; the gradients of weight and bias are sums over all."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    monkeypatch.setattr(chunked, "CACHE", 2 * 12 * 3)
    tensors, grad = make(5, 12, 3, 4), torch.randn(5, 12, 3, dtype=torch.float64)
    assert len(list(chunked._row_groups(tensors[0]))) == 3
    got = value_and_grads(causal_conv1d, tensors, grad, silu=True)
    assert_close(got, value_and_grads(torch_conv, tensors, grad, silu=True), 1e-13)  # float64, another order


@pytest.mark.parametrize("silu", [False, True])
def test_opcheck_of_a_permuted_input(silu):
    """The fake promises a contiguous output whatever the input's strides are."""
    x = torch.randn(2, 8, 9).transpose(1, 2).requires_grad_()
    weight, bias = torch.randn(8, 4, requires_grad=True), torch.randn(8, requires_grad=True)
    torch.library.opcheck(
        torch.ops.longvision.causal_conv1d, (x, weight, bias, None, silu, False, choose_backend(None, "cpu", x.dtype))
    )


# The kernels in C++, and plain torch where there are none


@pytest.fixture(params=[pytest.param("cpu", marks=needs_compiler), "chunked"])
def backend(request, monkeypatch):
    """What computes: the kernels, or plain torch as where there is no compiler."""
    if request.param == "chunked":
        monkeypatch.setattr("longvision.ops.common.has_cpu_kernels", lambda device, dtype: False)
    return request.param


def taken(monkeypatch):
    """-> a list to which each call adds the name of the module that computes it."""
    names = []
    for module in (cpu, chunked):
        original = module.forward
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "forward", lambda *a, _name=name, _f=original: (names.append(_name), _f(*a))[1])
    return names


@pytest.mark.parametrize("taps", range(1, 10))
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("boundaries", [None, [0, 1, 3, 8, 24, 40, 75]], ids=str)
def test_each_backend_equals_torch(monkeypatch, backend, taps, reverse, boundaries):
    """Up to nine taps, over sequences of one token and more; a tile is 16 tokens, a vector at most 16 channels."""
    batch = 2 if boundaries is None else 1
    tensors, grad = make(batch, 75, 19, taps), torch.randn(batch, 75, 19, dtype=torch.float64)
    boundaries = None if boundaries is None else torch.tensor(boundaries)
    names = taken(monkeypatch)
    options = {"silu": True, "reverse": reverse, "cu_seqlens": boundaries}
    got = value_and_grads(causal_conv1d, tensors, grad, **options)
    assert names == [backend if taps <= 8 else "chunked"]
    assert_close(got, value_and_grads(torch_conv, tensors, grad, **options), 1e-13)  # float64, another order


@pytest.mark.parametrize("width", [1, 3, 15, 16, 17, 37, 64, 80])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("silu", [False, True])
def test_widths(backend, width, dtype, tolerance, silu):
    tensors, grad = make(2, 33, width, 4, dtype), torch.randn(2, 33, width, dtype=dtype)
    truth = value_and_grads(torch_conv, [t.double() for t in tensors], grad.double(), silu=silu)
    assert_close(value_and_grads(causal_conv1d, tensors, grad, silu=silu), truth, tolerance)  # as above


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("boundaries", [None, [0, 2, 40, 63]], ids=str)
def test_bf16_is_rounded_once(backend, reverse, boundaries):
    tensors, grad = make(1, 63, 19, 4, torch.bfloat16), torch.randn(1, 63, 19).bfloat16()
    options = {"silu": True, "reverse": reverse, "cu_seqlens": None if boundaries is None else torch.tensor(boundaries)}
    got = value_and_grads(causal_conv1d, tensors, grad, **options)
    truth = value_and_grads(torch_conv, [t.double() for t in tensors], grad.double(), **options)
    for result, expected in zip(got, truth):
        error = (result.double() - expected).abs()
        # A rounding to bf16, and float32's. Torch's own sums of the filter's gradient round their products too.
        assert result.dtype == torch.bfloat16
        assert (error <= 2**-8 * expected.abs() + (2e-6 if backend == "cpu" else 2**-8) * expected.abs().max()).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(backend, layout):
    (x, weight, bias), grad = make(2, 37, 18, 4, torch.float32), torch.randn(2, 37, 18)
    strided, grad = laid_out(x, layout), laid_out(grad, layout)
    truth = value_and_grads(causal_conv1d, (strided.contiguous(), weight, bias), grad.contiguous(), silu=True)
    leaves = [t.detach().requires_grad_() for t in (strided, weight, bias)]
    y = causal_conv1d(*leaves, silu=True)
    y.backward(grad)
    assert all(torch.equal(a, b) for a, b in zip([y, *(leaf.grad for leaf in leaves)], truth))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_threads_and_repeats_give_the_same_bits(threads, dtype, reverse):
    tensors, grad = make(2, 130, 37, 4, dtype), torch.randn(2, 130, 37).to(dtype)
    threads(1)
    one = value_and_grads(causal_conv1d, tensors, grad, silu=True, reverse=reverse)
    for count in (1, 2, 3):
        threads(count)
        again = value_and_grads(causal_conv1d, tensors, grad, silu=True, reverse=reverse)
        assert all(torch.equal(a, b) for a, b in zip(again, one)), count


@needs_compiler
def test_extremes_of_silu():
    """What SiLU sees is -100 ... 100: e^100 is beyond float32."""
    x = torch.linspace(-100, 100, 401).view(1, 401, 1)
    tensors = (x, torch.ones(1, 1), None)
    truth = value_and_grads(torch_conv, (x.double(), torch.ones(1, 1).double(), None), torch.ones(1, 401, 1), silu=True)
    y, dx, _ = value_and_grads(causal_conv1d, tensors, torch.ones(1, 401, 1), silu=True)
    # Some roundings, relative even where SiLU is 1e-30; the slope crosses zero near -1.28, so it gets a floor.
    assert ((y - truth[0]).abs() <= 1e-6 * truth[0].abs() + 1e-35).all()
    assert ((dx - truth[1]).abs() <= 1e-6 * truth[1].abs() + 1e-7 * (x > -5) + 1e-35).all()
