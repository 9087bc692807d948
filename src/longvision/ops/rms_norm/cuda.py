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

    return norm.forward(x_BMD, weight_D, eps, dtype)


def backward(
    grad_BMD: Tensor, inverse_BM: Tensor, x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> gradients of x and the weight."""
    from longvision.ops.kernels.triton import norm

    return norm.backward(grad_BMD, inverse_BM, x_BMD, weight_D)
