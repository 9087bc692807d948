"""Root-mean-square normalisation: a token a tile."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longvision.ops.kernels.triton.launch import launch

ROWS = 64  # of a program in the backward pass, which adds up their parts of the weight's gradient


@triton.jit
def norm_forward(x, weight, y, inverse, width, eps, BLOCK: tl.constexpr):
    """Program (row): y = x / rms(x) weight."""
    i = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    inside = i < width
    x_D = tl.load(x + row * width + i, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x_D * x_D, axis=0) / width + eps)
    weight_D = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + i, x_D * scale * weight_D, mask=inside)
    tl.store(inverse + row, scale)


@triton.jit
def norm_backward(grad, passed, x, inverse, weight, dx, dweight, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Program (ROWS rows): dx = inverse (w grad - n mean(w grad n)) with n = x inverse, plus `passed` if any."""
    i = tl.arange(0, BLOCK)
    inside = i < width
    weight_D = tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    dweight_D = tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for r in range(first, tl.minimum(first + ROWS, rows)):
        row = r * width + i
        scale = tl.load(inverse + r)
        normed = tl.load(x + row, mask=inside, other=0.0).to(tl.float32) * scale
        grad_D = tl.load(grad + row, mask=inside, other=0.0).to(tl.float32)
        dweight_D += grad_D * normed
        grad_D *= weight_D
        dx_D = scale * (grad_D - normed * (tl.sum(grad_D * normed, axis=0) / width))
        if passed is not None:
            dx_D += tl.load(passed + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row, dx_D, mask=inside)
    tl.store(dweight + tl.program_id(0) * width + i, dweight_D, mask=inside)


def forward(x_BMD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """-> the normalised (..., D) in `dtype`, and 1 / rms (...)."""
    x_BMD = x_BMD.contiguous()
    width, rows = x_BMD.shape[-1], x_BMD.numel() // x_BMD.shape[-1]
    y_BMD = torch.empty_like(x_BMD, dtype=dtype)
    inverse_BM = x_BMD.new_empty(x_BMD.shape[:-1], dtype=torch.float32)
    block = triton.next_power_of_2(width)
    tensors = x_BMD, weight_D.contiguous(), y_BMD, inverse_BM
    launch(norm_forward, (rows,), *tensors, width, eps, warps=_warps(block), BLOCK=block)
    return y_BMD, inverse_BM


def backward(
    grad_BMD: Tensor, inverse_BM: Tensor, x_BMD: Tensor, weight_D: Tensor, passed_BMD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """-> gradients of x (`passed`, which came around the norm, is added) and of the weight."""
    x_BMD, grad_BMD = x_BMD.contiguous(), grad_BMD.contiguous()
    width, rows = x_BMD.shape[-1], inverse_BM.numel()
    programs = -(-rows // ROWS)
    dx_BMD = torch.empty_like(x_BMD)
    dweight = x_BMD.new_empty((programs, width), dtype=torch.float32)
    passed_BMD = None if passed_BMD is None else passed_BMD.contiguous()
    block = triton.next_power_of_2(width)
    tensors = grad_BMD, passed_BMD, x_BMD, inverse_BM, weight_D.contiguous(), dx_BMD, dweight
    launch(norm_backward, (programs,), *tensors, rows, width, warps=_warps(block), ROWS=ROWS, BLOCK=block)
    return dx_BMD, dweight.sum(0).to(weight_D.dtype)


def _warps(block: int) -> int:
    return max(1, min(8, block // 256))
