"""Root-mean-square normalisation on a GPU, by Triton kernels (ops/kernels/triton/norm.py)."""

import torch
from torch import Tensor

from longvision.ops.kernels.triton import DTYPES
from longvision.ops.kernels.triton.layout import MOST_CHANNELS


def takes(x_BMD: Tensor, weight_dtype: torch.dtype) -> bool:
    """Whether a row of x fits into a program."""
    return x_BMD.dtype in DTYPES and x_BMD.shape[-1] <= MOST_CHANNELS


def forward(x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> y (..., D) in `dtype`, and 1 / rms (...)."""
    from longvision.ops.kernels.triton import norm

    y_BMD, inverse_BM, _ = norm.forward(x_BMD, weight_D, eps, dtype)
    return y_BMD, inverse_BM


def backward(
    grad_BMD: Tensor, inverse_BM: Tensor, x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> gradients of x and the weight."""
    from longvision.ops.kernels.triton import norm

    return norm.backward(grad_BMD, inverse_BM, x_BMD, weight_D)


def add_forward(x_BMD: Tensor, branch_BMD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """-> x + branch in x's dtype, its norm in the weight's, and 1 / rms (...)."""
    from longvision.ops.kernels.triton import norm

    y_BMD, inverse_BM, total_BMD = norm.forward(x_BMD, weight_D, eps, weight_D.dtype, branch_BMD)
    return total_BMD, y_BMD, inverse_BM


def add_backward(
    grad_total_BMD: Tensor | None, grad_BMD: Tensor, inverse_BM: Tensor, total_BMD: Tensor, weight_D: Tensor
) -> tuple[Tensor, Tensor]:
    """-> gradients of the sum and the weight."""
    from longvision.ops.kernels.triton import norm

    return norm.backward(grad_BMD, inverse_BM, total_BMD, weight_D, passed_BMD=grad_total_BMD)
