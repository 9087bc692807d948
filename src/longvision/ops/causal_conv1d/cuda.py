"""The short depthwise convolution with SiLU on a GPU, by Triton kernels (ops/kernels/triton/convolution.py)."""

import torch
from torch import Tensor

from longvision.ops.kernels.cpp import dense_rows
from longvision.ops.kernels.triton.layout import sequence_numbers


def forward(
    x_BME: Tensor, weight_EK: Tensor, bias_E: Tensor | None, silu: bool, reverse: bool, cu_seqlens: Tensor | None
) -> Tensor:
    """(B, M, E) -> (B, M, E); arguments as in `causal_conv1d`."""
    from longvision.ops.kernels.triton import convolution

    sequence_M = sequence_numbers(cu_seqlens, x_BME)
    return convolution.forward(dense_rows(x_BME), weight_EK, bias_E, silu, reverse, sequence_M)


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
    from longvision.ops.kernels.triton import convolution

    dx_BME = torch.empty_like(x_BME, memory_format=torch.contiguous_format)
    sequence_M = sequence_numbers(cu_seqlens, x_BME)
    dweight_EK, dbias_E = convolution.backward(
        grad_BME, dense_rows(x_BME), weight_EK, bias_E, silu, reverse, sequence_M, dx_BME
    )
    return dx_BME, dweight_EK.to(weight_EK.dtype), x_BME.new_empty(0) if bias_E is None else dbias_E.to(bias_E.dtype)
