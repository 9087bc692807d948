"""The short depthwise convolution with SiLU in C++ (ops/kernels/cpp/conv.h)."""

import torch
from torch import Tensor

from longvision.ops.kernels.cpp import Library, address, dense, dense_rows, kernels, pack, room, rows
from longvision.ops.packing import sequence_borders

MOST_TAPS = 8  # as in native/conv.h
TILE = 32  # tokens of a task


def forward(
    x_BME: Tensor, weight_EK: Tensor, bias_E: Tensor | None, silu: bool, reverse: bool, cu_seqlens: Tensor | None
) -> Tensor:
    """(B, M, E) -> (B, M, E); arguments as in `causal_conv1d`."""
    library, conv, _alive = _prepare(x_BME, weight_EK, bias_E, silu, reverse, cu_seqlens)
    y_BME = room(*x_BME.shape, dtype=x_BME.dtype)
    library.conv_forward(conv + pack(*rows(y_BME)))
    return y_BME


def backward(
    grad_BME: Tensor,
    x_BME: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None,
    silu: bool,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of x, weight, bias (empty without one)."""
    dx_BME = room(*x_BME.shape, dtype=x_BME.dtype)
    dweight_EK, dbias_E = backward_into(dx_BME, grad_BME, x_BME, weight_EK, bias_E, silu, reverse, cu_seqlens)
    return dx_BME, dweight_EK.to(weight_EK.dtype), x_BME.new_empty(0) if bias_E is None else dbias_E.to(bias_E.dtype)


def backward_into(
    dx_BME: Tensor,
    grad_BME: Tensor,
    x_BME: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None,
    silu: bool,
    reverse: bool,
    cu_seqlens: Tensor | None,
    add: bool = False,
) -> tuple[Tensor, Tensor]:
    """Writes the gradient of x, or with `add` adds it to what dx holds; -> gradients of weight and bias."""
    library, conv, _alive = _prepare(x_BME, weight_EK, bias_E, silu, reverse, cu_seqlens)
    batch, tokens, width = x_BME.shape
    taps = weight_EK.shape[1]
    grad_BME = grad_BME.to(library.real).contiguous()
    # Each tile's own sums of every tap, and of the bias: added in a fixed order, whatever the threads.
    sums = grad_BME.new_empty(batch * -(-tokens // TILE), taps + 1, width)
    library.conv_backward(conv + pack(*rows(grad_BME), *rows(dx_BME), add, sums.data_ptr()))
    return sums[:, :taps].sum(0).t().contiguous(), sums[:, taps].sum(0)


def _prepare(
    x_BME: Tensor, weight_EK: Tensor, bias_E: Tensor | None, silu: bool, reverse: bool, cu_seqlens: Tensor | None
) -> tuple[Library, bytes, object]:
    """-> the kernels, `Conv` of native/conv.h, and what has to stay alive during the call."""
    library = kernels(x_BME.dtype)
    assert library is not None, "available() was not asked"
    x_BME = dense_rows(x_BME)
    weight = dense(weight_EK, library.real)
    bias = None if bias_E is None else dense(bias_E, library.real)
    borders = sequence_borders(cu_seqlens, x_BME.shape[1])
    record = pack(
        *(*x_BME.shape, weight.shape[1], torch.get_num_threads(), reverse, silu),
        *(borders.data_ptr(), len(borders) - 1),
        *rows(x_BME),
        *(weight.data_ptr(), address(bias)),
    )
    return library, record, (x_BME, weight, bias, borders)
