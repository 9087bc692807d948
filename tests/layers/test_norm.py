"""RMSNorm against its formula."""

import pytest
import torch

from longvision.layers import RMSNorm


def formula(x, weight, eps):
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def norm_of(width, dtype, eps=1e-5):
    norm = RMSNorm(width, eps).to(dtype)
    torch.nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("eps", [1e-5, 1e-1])
def test_equals_the_formula(scale, eps):
    norm, x = norm_of(48, torch.float64, eps), scale * torch.randn(2, 7, 48, dtype=torch.float64)
    got = norm(x)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, formula(x, norm.weight, eps), rtol=1e-13, atol=0)  # float64, one short sum


def test_a_float32_residual_meets_bf16_weights():
    """The residual is not rounded before it is normalised: only the output is."""
    norm, x = norm_of(48, torch.bfloat16), torch.randn(2, 7, 48)
    got, truth = norm(x), formula(x, norm.weight, 1e-5)
    assert got.dtype == torch.bfloat16
    # The truth rounded once; float32's error, 2**-22, tips a rounding to bf16's 2**-8 in one of 10,000 values.
    # Rounding x before would make a third of them another number.
    assert (got != truth.bfloat16()).double().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow(dtype):
    """The square of 60,000 is beyond float16."""
    norm, x = norm_of(16, dtype), torch.full((1, 1, 16), 60_000.0, dtype=dtype)
    torch.testing.assert_close(norm(x)[0, 0], norm.weight.detach(), rtol=0, atol=0)


def test_gradients_equal_the_formula_s():
    norm, x = norm_of(9, torch.float64), torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, 9, dtype=torch.float64)
    got = torch.autograd.grad(norm(x), [x, norm.weight], grad)
    truth = torch.autograd.grad(formula(x, norm.weight, 1e-5), [x, norm.weight], grad)
    torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-13)  # float64, sums that cancel
