"""Root-mean-square normalisation in C++ (ops/kernels/cpp/norm.h): saves one number a token for the backward pass."""

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import kernels_for
from longvision.ops.kernels.cpp.record import contiguous, double, pack

ROWS = 64  # tokens of a task, as in norm.h


def takes(x_BMD: Tensor, weight_dtype: torch.dtype) -> bool:
    """Whether x has the precision that the weight computes in."""
    return x_BMD.dtype == torch.promote_types(weight_dtype, torch.float32)


def forward(x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> y (..., D) in `dtype`, and 1 / rms (...)."""
    library = kernels_for(dtype)
    x, weight = contiguous(x_BMD, library.real), contiguous(weight_D, library.real)
    y_BMD = cached_empty(*x.shape, dtype=dtype)
    inverse_BM = x.new_empty(x.shape[:-1])
    library.norm_forward(_record(x, weight, eps) + pack(y_BMD.data_ptr(), inverse_BM.data_ptr()))
    return y_BMD, inverse_BM


def backward(
    grad_BMD: Tensor, inverse_BM: Tensor, x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> gradients of x and the weight; `grad` is taken in `dtype`."""
    library = kernels_for(dtype)
    x, weight, grad = contiguous(x_BMD, library.real), contiguous(weight_D, library.real), contiguous(grad_BMD, dtype)
    dx_BMD = cached_empty(*x.shape, dtype=x.dtype)
    dweight = x.new_empty(-(-inverse_BM.numel() // ROWS), weight.shape[0])  # of each task: added in a fixed order
    written = pack(grad.data_ptr(), inverse_BM.data_ptr(), dx_BMD.data_ptr(), dweight.data_ptr())
    library.norm_backward(_record(x, weight, eps) + written)
    return dx_BMD, dweight.sum(0).to(weight_D.dtype)


def _record(x: Tensor, weight: Tensor, eps: float) -> bytes:
    """`Norm` of norm.h."""
    width = weight.shape[0]
    return pack(x.numel() // width, width, torch.get_num_threads(), double(eps), x.data_ptr(), weight.data_ptr())
