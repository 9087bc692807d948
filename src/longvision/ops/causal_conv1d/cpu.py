"""The short depthwise convolution with SiLU in C++ (ops/kernels/cpp/conv.h)."""

import torch
from torch import Tensor

from longvision.ops.causal_conv1d.inputs import ConvInputs
from longvision.ops.common import boundaries_for_cpu
from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import Library, kernels_for
from longvision.ops.kernels.cpp.record import address, contiguous, contiguous_channels, pack, rows

MOST_TAPS = 8  # as in conv.h
TILE = 32  # tokens of a task


def forward(inputs: ConvInputs) -> Tensor:
    """-> (B, M, E)."""
    library, conv, _alive = _prepare(inputs)
    y_BME = cached_empty(*inputs.x_BME.shape, dtype=inputs.x_BME.dtype)
    library.conv_forward(conv + pack(*rows(y_BME)))
    return y_BME


def backward(grad_BME: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of x, in its dtype, weight and bias."""
    library, conv, _alive = _prepare(inputs)
    batch, tokens, width = inputs.x_BME.shape
    taps = inputs.weight_EK.shape[1]
    dx_BME = cached_empty(*inputs.x_BME.shape, dtype=inputs.x_BME.dtype)
    grad_BME = grad_BME.to(library.real).contiguous()
    # Each tile's own sums of every tap, and of the bias: added in a fixed order, whatever the threads.
    sums = grad_BME.new_empty(batch * -(-tokens // TILE), taps + 1, width)
    library.conv_backward(conv + pack(*rows(grad_BME), *rows(dx_BME), 0, sums.data_ptr()))
    return dx_BME, sums[:, :taps].sum(0).t().contiguous(), sums[:, taps].sum(0)


def _prepare(inputs: ConvInputs) -> tuple[Library, bytes, object]:
    """-> the kernels, `Conv` of conv.h, and what has to stay alive during the call."""
    library = kernels_for(inputs.x_BME.dtype)
    x_BME = contiguous_channels(inputs.x_BME)
    weight = contiguous(inputs.weight_EK, library.real)
    bias = None if inputs.bias_E is None else contiguous(inputs.bias_E, library.real)
    boundaries = boundaries_for_cpu(inputs.cu_seqlens, x_BME.shape[1])
    record = pack(
        *(*x_BME.shape, weight.shape[1], torch.get_num_threads(), inputs.reverse, inputs.silu),
        *(boundaries.data_ptr(), len(boundaries) - 1),
        *rows(x_BME),
        *(weight.data_ptr(), address(bias)),
    )
    return library, record, (x_BME, weight, bias, boundaries)
