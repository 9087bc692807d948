"""Root-mean-square normalisation in C++ (ops/kernels/cpp/norm.h): keeps one number a token for the backward pass."""

import torch
from torch import Tensor

from longvision.ops.kernels.cpp import dense, double, kernels, pack, room

ROWS = 64  # tokens of a task, as in native/norm.h


def takes(x_BMD: Tensor, weight_dtype: torch.dtype) -> bool:
    """Whether x has the precision that the weight computes in."""
    return x_BMD.dtype == torch.promote_types(weight_dtype, torch.float32)


def forward(x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> y (..., D) in `dtype`, and 1 / rms (...)."""
    library = kernels(dtype)
    assert library is not None, "available() was not asked"
    x, weight = dense(x_BMD, library.real), dense(weight_D, library.real)
    y_BMD = room(*x.shape, dtype=dtype)
    inverse_BM = x.new_empty(x.shape[:-1])
    library.norm_forward(_record(x, weight, eps) + pack(y_BMD.data_ptr(), inverse_BM.data_ptr()))
    return y_BMD, inverse_BM


def backward(
    grad_BMD: Tensor, inverse_BM: Tensor, x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """-> gradients of x and the weight; `grad` is taken in `dtype`."""
    library = kernels(dtype)
    assert library is not None, "available() was not asked"
    x, weight, grad = dense(x_BMD, library.real), dense(weight_D, library.real), dense(grad_BMD, dtype)
    dx_BMD = room(*x.shape, dtype=x.dtype)
    dweight = x.new_empty(-(-inverse_BM.numel() // ROWS), weight.shape[0])  # of each task: added in a fixed order
    written = pack(grad.data_ptr(), inverse_BM.data_ptr(), dx_BMD.data_ptr(), dweight.data_ptr())
    library.norm_backward(_record(x, weight, eps) + written)
    return dx_BMD, dweight.sum(0).to(weight_D.dtype)


def _record(x: Tensor, weight: Tensor, eps: float) -> bytes:
    """`Norm` of native/norm.h."""
    width = weight.shape[0]
    return pack(x.numel() // width, width, torch.get_num_threads(), double(eps), x.data_ptr(), weight.data_ptr())
