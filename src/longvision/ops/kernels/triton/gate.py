"""Backward of the gate, out = y silu(z): a pointwise kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from longvision.ops.kernels.triton.arithmetic import sigmoid
from longvision.ops.kernels.triton.launch import launch, rows

BLOCK = 512


@triton.jit
def gate_backward(
    grad,
    y,
    z,
    z_batch,
    z_row,
    dy,
    dz,
    dz_batch,
    dz_row,
    out,
    tokens,
    width,
    scale,
    BLOCK: tl.constexpr,
):
    """Program (token, block of channels, batch): dy = scale grad silu(z), dz, and out again if asked."""
    t = tl.program_id(0)  # the one axis of a grid that takes more than 65,535 programs
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(2).to(tl.int64)
    inside = e < width
    row = (b * tokens + t) * width + e
    grad_E = tl.load(grad + row, mask=inside, other=0.0).to(tl.float32)
    y_E = tl.load(y + row, mask=inside, other=0.0).to(tl.float32)
    z_E = tl.load(z + b * z_batch + t * z_row + e, mask=inside, other=0.0).to(tl.float32)
    share = sigmoid(z_E)
    silu = z_E * share
    tl.store(dy + row, scale * grad_E * silu, mask=inside)
    tl.store(dz + b * dz_batch + t * dz_row + e, grad_E * y_E * (share + silu * (1.0 - share)), mask=inside)
    if out is not None:
        tl.store(out + row, y_E * silu, mask=inside)


def backward(
    grad_BME: Tensor, y_BME: Tensor, z_BME: Tensor, dz_BME: Tensor, out: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """-> `scale` times the gradient of y, in y's dtype; writes that of z, and if asked y silu(z). `grad` and y are
    contiguous."""
    batch, tokens, width = y_BME.shape
    dy_BME = torch.empty_like(y_BME)
    grid = tokens, -(-width // BLOCK), batch
    given = grad_BME, y_BME, *rows(z_BME), dy_BME, *rows(dz_BME), out, tokens, width, scale
    launch(gate_backward, grid, *given, warps=4, BLOCK=BLOCK)
    return dy_BME
