"""The short depthwise convolution with SiLU on a GPU, by Triton kernels (ops/kernels/triton/convolution.py)."""

import torch
from torch import Tensor

from longvision.ops.causal_conv1d.inputs import ConvInputs
from longvision.ops.kernels.cpp.record import contiguous_channels
from longvision.ops.kernels.triton.layout import sequence_numbers


def forward(inputs: ConvInputs) -> Tensor:
    """-> (B, M, E)."""
    from longvision.ops.kernels.triton import convolution

    return convolution.forward(*_arguments(inputs))


def backward(grad_BME: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of x, in its dtype, weight and bias."""
    from longvision.ops.kernels.triton import convolution

    dx_BME = torch.empty_like(inputs.x_BME, memory_format=torch.contiguous_format)
    return dx_BME, *convolution.backward(grad_BME, *_arguments(inputs), dx_BME)


def _arguments(inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor | None, bool, bool, Tensor | None]:
    x_BME, weight_EK, bias_E, cu_seqlens, silu, reverse = inputs
    return contiguous_channels(x_BME), weight_EK, bias_E, silu, reverse, sequence_numbers(cu_seqlens, x_BME)
