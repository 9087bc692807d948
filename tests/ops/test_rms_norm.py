"""Root-mean-square normalisation against its formula in float64, and its life as one graph node."""

import pytest
import torch

from longvision.ops import rms_norm
from longvision.ops.rms_norm import cpu, op
from support.layouts import LAYOUTS, laid_out
from support.scan_cases import needs_compiler

pytestmark = pytest.mark.usefixtures("poison")

WIDTHS = (1, 7, 16, 192, 193)
# Largest difference as a part of the largest true value. float64, float32: the roundings of a short sum and of a few
# products; the weight's gradient sums over all rows. bfloat16: one rounding, by 2**-8 of a value at most.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-8 + 2e-6}


def formula(x, weight, eps=1e-5):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def value_and_grads(function, x, weight, grad, **options):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight, **options)
    y.backward(grad.to(y.dtype))
    return y.detach(), x.grad, weight.grad


def assert_close(got, truth, computed_in=torch.float64):
    for result, expected in zip(got, truth):
        assert result.shape == expected.shape and torch.isfinite(result).all()
        error = (result.double() - expected).abs().max()
        tolerance = max(TOLERANCE[result.dtype], TOLERANCE[computed_in])
        assert error <= tolerance * expected.abs().max(), f"{error / expected.abs().max():.1e}"


@pytest.fixture(params=[pytest.param("cpu", marks=needs_compiler), "reference"])
def backend(request, monkeypatch):
    """What computes: the kernels, or plain torch as where there is no compiler."""
    if request.param == "reference":
        monkeypatch.setattr("longvision.ops.common.has_cpu_kernels", lambda device, dtype: False)
    return request.param


@pytest.mark.parametrize("x_dtype, weight_dtype", [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),  # the residual of a half-precision model
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float64, torch.float32),
    (torch.float32, torch.float64),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("width", WIDTHS)
def test_output_and_gradients(backend, width, x_dtype, weight_dtype):
    """150 rows: the kernels take 64 at a time. Pairs of precisions that they do not take go to plain torch."""
    x, weight = torch.randn(3, 50, width).to(x_dtype), torch.randn(width).to(weight_dtype)
    grad = torch.randn(3, 50, width).to(weight_dtype)
    got = value_and_grads(rms_norm, x, weight, grad)
    assert [t.dtype for t in got] == [weight_dtype, x_dtype, weight_dtype]
    x_double, weight_double = x.double(), weight.double()
    truth = value_and_grads(formula, x_double, weight_double, grad.double())
    if width == 1:  # x / |x| does not move with x: the true gradient is eps's, what is left of numbers near one
        torch.testing.assert_close(got[1].double(), truth[1], rtol=1e-2, atol=1e-6 * weight_double.abs().item() * 100)
        got, truth = (got[0], got[2]), (truth[0], truth[2])
    assert_close(got, truth, computed_in=torch.promote_types(x_dtype, torch.float32))


@needs_compiler
@pytest.mark.parametrize("x_dtype, weight_dtype, taken", [
    (torch.float32, torch.float32, True),
    (torch.float64, torch.float64, True),
    (torch.float32, torch.bfloat16, True),
    (torch.bfloat16, torch.float32, False),
    (torch.float64, torch.float32, False),
])  # fmt: skip
def test_what_the_kernels_take(x_dtype, weight_dtype, taken):
    assert cpu.takes(torch.empty(1, 1, dtype=x_dtype), weight_dtype) == taken


@pytest.mark.parametrize("shape", [(7,), (1, 7), (64, 7), (65, 7), (2, 3, 4, 7), (0, 7), (2, 0, 7)], ids=str)
def test_any_number_of_dimensions_and_rows(backend, shape):
    x, weight, grad = torch.randn(shape), torch.randn(7), torch.randn(shape)
    got = value_and_grads(rms_norm, x, weight, grad)
    truth = value_and_grads(formula, x.double(), weight.double(), grad.double())
    if x.numel():
        assert_close(got, truth)
    assert [t.shape for t in got] == [t.shape for t in truth]


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e4, 1e10])
@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_small_and_large_inputs(backend, scale, eps):
    """The square of 1e-10 is far below eps, that of 1e10 far above."""
    x, weight = scale * torch.randn(2, 7, 48), torch.randn(48)
    grad = torch.randn(2, 7, 48)
    got = value_and_grads(rms_norm, x, weight, grad, eps=eps)
    assert_close(got, value_and_grads(formula, x.double(), weight.double(), grad.double(), eps=eps))


def test_zeros_stay_zeros(backend):
    y, dx, dweight = value_and_grads(rms_norm, torch.zeros(2, 5), torch.ones(5), torch.ones(2, 5))
    assert (y == 0).all() and (dweight == 0).all()
    torch.testing.assert_close(dx, torch.full((2, 5), 1e-5**-0.5), rtol=1e-6, atol=0)  # float32


@pytest.mark.parametrize("layout", [*LAYOUTS, "strided weight"])
def test_any_strides_give_the_same_bits(backend, layout):
    x, weight, grad = torch.randn(2, 70, 12), torch.randn(12), torch.randn(2, 70, 12)
    strided, strided_weight = x, weight
    if layout in LAYOUTS:
        strided, grad = laid_out(x, layout), laid_out(grad, layout)
    else:
        strided_weight = torch.stack([weight, weight + 1], 1)[:, 0]
    truth = value_and_grads(rms_norm, strided.contiguous(), weight, grad.contiguous())
    got = value_and_grads(rms_norm, strided, strided_weight, grad)
    if backend == "cpu":
        assert all(torch.equal(a, b) for a, b in zip(got, truth))
    assert_close(got, [t.double() for t in truth])


@needs_compiler
@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_threads_and_repeats_give_the_same_bits(threads, weight_dtype):
    x = torch.randn(2, 200, 37, dtype=torch.promote_types(weight_dtype, torch.float32))
    weight, grad = torch.randn(37).to(weight_dtype), torch.randn(2, 200, 37)
    threads(1)
    one = value_and_grads(rms_norm, x, weight, grad)
    for count in (1, 2, 3):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(value_and_grads(rms_norm, x, weight, grad), one)), count


@needs_compiler
@pytest.mark.parametrize("eps", [1e-5, 1.0])
def test_gradcheck(eps):
    x, weight = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, eps), (x.requires_grad_(), weight.requires_grad_()))


@needs_compiler
@pytest.mark.parametrize("weight_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(weight_dtype, permuted):
    x = torch.randn(2, 9, 5, dtype=torch.promote_types(weight_dtype, torch.float32))
    x = x.transpose(0, 1) if permuted else x
    weight = torch.randn(5).to(weight_dtype)
    leaves = x.detach().requires_grad_(), weight.clone().requires_grad_()
    torch.library.opcheck(torch.ops.longvision.rms_norm, (*leaves, 1e-5, "cpu"))
    y, inverse = torch.ops.longvision.rms_norm(x, weight, 1e-5, "cpu")
    arguments = torch.ones_like(y), inverse, x, weight, 1e-5, "cpu"
    torch.library.opcheck(torch.ops.longvision.rms_norm_backward, arguments)


class Norm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(5))

    def forward(self, x):
        return rms_norm(x, self.weight)


@needs_compiler
def test_compile_and_export_see_one_node():
    def operators(graph):
        return [str(node.target) for node in graph.nodes if "longvision" in str(node.target)]

    seen = []

    def note(module, _inputs):
        seen.append(operators(module.graph))
        return module.forward

    model, x = Norm(), torch.randn(2, 9, 5)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend=note)(x), model(x))
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), model(x))
    assert [len(names) for names in (*seen, operators(program.graph))] == [1, 1]

    model(x).square().sum().backward()
    eager, model.weight.grad = model.weight.grad, None
    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    assert torch.equal(model.weight.grad, eager)


def test_meta_tensors_have_the_shapes_of_real_ones():
    x = torch.randn(2, 9, 5, device="meta", requires_grad=True)
    weight = torch.ones(5, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y = rms_norm(x, weight)
    assert (y.shape, y.dtype, y.device.type) == ((2, 9, 5), torch.bfloat16, "meta")
    y.sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16)


@needs_compiler
def test_one_number_a_token_is_saved():
    saved = []
    x, weight = torch.randn(2, 9, 64, requires_grad=True), torch.ones(64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        rms_norm(x, weight)
    assert sorted(t.numel() for t in saved if t.data_ptr() not in (x.data_ptr(), weight.data_ptr())) == [2 * 9]


def test_not_a_number_is_not_hidden(backend):
    x = torch.randn(70, 5)
    x[66, 2] = torch.nan
    y = rms_norm(x, torch.ones(5))
    assert y[66].isnan().all() and torch.isfinite(y[:66]).all() and torch.isfinite(y[67:]).all()


@pytest.mark.parametrize("x, weight", [((2, 5), (4,)), ((2, 5), (1,)), ((2, 5), (1, 5)), ((5,), ()), ((), (5,))])
def test_a_wrong_shape_is_named_in_one_sentence(x, weight):
    with pytest.raises(ValueError) as error:
        op.rms_norm(torch.ones(x), torch.ones(weight))
    fits = f"weight of shape {weight}, expected {x[-1:]}, since x is {x}: channels come last"
    assert str(error.value) == f"rms_norm got {fits if x else 'x of shape (), expected (..., channels), at least one'}"
