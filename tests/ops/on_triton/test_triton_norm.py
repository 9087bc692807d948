"""The normalisation's kernels against its formula in float64."""

import pytest
import torch

from longvision.ops import rms_norm
from longvision.ops.rms_norm import cuda as kernels
from longvision.ops.rms_norm.reference import rms_norm_reference
from support.layouts import LAYOUTS, laid_out
from support.triton_cases import TOLERANCE, assert_norms

pytestmark = pytest.mark.usefixtures("poison", "chosen")

EPS = 1e-5
SUMMED = ("weight",)
STORED = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16),
          (torch.float32, torch.float16), (torch.bfloat16, torch.float32)]  # fmt: skip


def value_and_grads(function, tensors, grad, **options):
    """-> the output, and the gradient of the sum of `grad` times it."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = function(*leaves.values(), **options)
    y.backward(grad.to(y.dtype))
    return {"y": y.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def check(device, tensors, grad, eps=EPS):
    got = value_and_grads(rms_norm, {name: t.to(device) for name, t in tensors.items()}, grad.to(device), eps=eps)
    double = {name: t.double() for name, t in tensors.items()}
    truth = value_and_grads(rms_norm_reference, double, grad.double(), eps=eps)
    assert all(got[name].dtype == t.dtype for name, t in tensors.items())
    assert_norms({name: t.cpu() for name, t in got.items()}, truth, TOLERANCE, SUMMED)


def make(*shape, dtype=torch.float32, weight_dtype=torch.float32):
    x, weight, grad = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(weight_dtype), torch.randn(shape)
    return {"x": x, "weight": weight}, grad.to(weight_dtype)


@pytest.mark.parametrize("rows, width", [(1, 5), (63, 5), (64, 3), (65, 192), (130, 5), (3, 300)])
def test_rows_and_widths(device, rows, width):
    tensors, grad = make(rows, width)
    check(device, tensors, grad)


@pytest.mark.parametrize("rows", [1, 65])
def test_one_channel(device, rows):
    """x / |x| does not move with x: its gradient is eps's, so eps is not small here. No sum cancels."""
    tensors, grad = make(rows, 1)
    tensors["x"] = tensors["x"].abs()
    check(device, tensors, grad.abs(), eps=1.0)


@pytest.mark.parametrize("dtype, weight_dtype", STORED, ids=str)
def test_precisions(device, dtype, weight_dtype):
    tensors, grad = make(2, 9, 48, dtype=dtype, weight_dtype=weight_dtype)
    check(device, tensors, grad)


@pytest.mark.parametrize("eps", [1e-5, 1e-1])
@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e4, 1e10])
def test_small_and_large_inputs(device, scale, eps):
    tensors, grad = make(5, 48)
    tensors["x"] *= scale
    check(device, tensors, grad, eps=eps)


def test_what_came_around_the_norm_is_added(device):
    from longvision.ops.kernels.triton import norm

    x, weight, grad, passed = (torch.randn(*s, device=device) for s in ((70, 5), (5,), (70, 5), (70, 5)))
    _, inverse = norm.forward(x, weight, EPS, torch.float32)
    alone, dweight = norm.backward(grad, inverse, x, weight)
    both, same = norm.backward(grad, inverse, x, weight, passed_BMD=passed)
    torch.testing.assert_close(both, alone + passed, rtol=1e-6, atol=1e-6)  # float32
    assert torch.equal(dweight, same)


@pytest.mark.parametrize("layout", [*LAYOUTS, "strided weight"])
def test_any_strides_give_the_same_bits(device, layout):
    x, weight, grad = torch.randn(2, 9, 12), torch.randn(12), torch.randn(2, 9, 12)
    strided, strided_weight = x, weight
    if layout in LAYOUTS:
        strided, grad = laid_out(x, layout), laid_out(grad, layout)
    else:
        strided_weight = torch.stack([weight, weight + 1], 1)[:, 0]

    def of(x, weight, grad):
        return value_and_grads(rms_norm, {"x": x.to(device), "weight": weight.to(device)}, grad.to(device))

    truth = of(strided.contiguous(), weight, grad.contiguous())
    got = of(strided, strided_weight, grad)
    assert all(torch.equal(got[name], truth[name]) for name in truth)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 2, 7)], ids=str)
def test_any_number_of_dimensions(device, shape):
    tensors, grad = make(*shape)
    check(device, tensors, grad)


@pytest.mark.parametrize("shape", [(0, 7), (2, 0, 7)], ids=str)
def test_no_rows(device, shape):
    tensors, grad = make(*shape)
    got = value_and_grads(rms_norm, {name: t.to(device) for name, t in tensors.items()}, grad.to(device))
    assert got["y"].shape == got["x"].shape == shape and (got["weight"] == 0).all()


def test_not_a_number_is_not_hidden(device):
    x = torch.randn(70, 5, device=device)
    x[66, 2] = torch.nan
    y = rms_norm(x, torch.ones(5, device=device))
    assert y[66].isnan().all() and torch.isfinite(y[:66]).all() and torch.isfinite(y[67:]).all()


@pytest.mark.parametrize("dtype, weight_dtype", STORED[:2], ids=str)
def test_opcheck(device, dtype, weight_dtype):
    tensors, grad = make(3, 5, dtype=dtype, weight_dtype=weight_dtype)
    x, weight, grad = tensors["x"].to(device), tensors["weight"].to(device), grad.to(device)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.library.opcheck(torch.ops.longvision.rms_norm, (*leaves, EPS, "triton"))
    _, inverse = torch.ops.longvision.rms_norm(x, weight, EPS, "triton")
    torch.library.opcheck(torch.ops.longvision.rms_norm_backward, (grad, inverse, x, weight, EPS, "triton"))


def test_too_wide_a_row_is_left_to_torch(device, monkeypatch):
    monkeypatch.setattr(kernels, "MOST_CHANNELS", 4)
    monkeypatch.setattr("longvision.ops.kernels.triton.norm.forward", None)  # not called
    tensors, grad = make(3, 5)
    check(device, tensors, grad)


@pytest.mark.gpu
@pytest.mark.parametrize("rows, width", [(8 * 197, 384), (6085, 192), (128 * 197, 768), (100, 16384)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_large(cuda, rows, width, dtype, tolerance):
    tensors, grad = make(rows, width, weight_dtype=dtype)
    tensors, grad = {name: t.to(cuda) for name, t in tensors.items()}, grad.to(cuda)
    got, again = (value_and_grads(rms_norm, tensors, grad) for _ in range(2))
    assert all(torch.equal(again[name], got[name]) for name in got)
    truth = value_and_grads(
        rms_norm_reference, {name: t.double() for name, t in tensors.items()}, grad.double(), eps=EPS
    )
    assert_norms(got, truth, {torch.float32: 1e-5, dtype: tolerance})
