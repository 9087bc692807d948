"""The short depthwise convolution in plain torch, as sums of shifted views: no padding, no transposes, any device."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.causal_conv1d.inputs import ConvInputs

Sequences = list[tuple[int, int]]


def forward(inputs: ConvInputs) -> Tensor:
    """-> (B, M, E)."""
    x_BME, weight_EK, bias_E, cu_seqlens, silu, reverse = inputs
    y_BME = _convolve(x_BME, weight_EK, bias_E, reverse, _sequences(cu_seqlens, x_BME))
    return (F.silu(y_BME, inplace=True) if silu else y_BME).to(x_BME.dtype)


def backward(grad_BME: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of x, in its dtype, weight and bias. What SiLU saw is computed again, not saved."""
    x_BME, weight_EK, bias_E, cu_seqlens, silu, reverse = inputs
    sequences = _sequences(cu_seqlens, x_BME)
    dtype = torch.promote_types(x_BME.dtype, torch.float32)
    grad_BME = grad_BME.to(dtype)
    if silu:
        before_silu_BME = _convolve(x_BME, weight_EK, bias_E, reverse, sequences)
        grad_BME = torch.ops.aten.silu_backward(grad_BME, before_silu_BME)

    # The adjoint of looking back by k tokens is looking ahead by k tokens.
    dx_BME = _convolve(grad_BME, weight_EK, None, not reverse, sequences).to(x_BME.dtype)
    dweight_EK = torch.zeros_like(weight_EK, dtype=dtype)
    for tap, back in _taps(weight_EK):
        for output, source in _overlaps(sequences, back, reverse):
            dweight_EK[:, tap] += (grad_BME[:, output] * x_BME[:, source]).sum((0, 1))
    return dx_BME, dweight_EK, grad_BME.sum((0, 1))


def _convolve(x_BME: Tensor, weight_EK: Tensor, bias_E: Tensor | None, reverse: bool, sequences: Sequences) -> Tensor:
    """Before the activation, in float32 or better, so that half precision rounds once."""
    dtype = torch.promote_types(x_BME.dtype, torch.float32)
    weight_EK, last = weight_EK.to(dtype), weight_EK.shape[1] - 1
    y_BME = torch.empty(x_BME.shape, dtype=dtype, device=x_BME.device)  # contiguous, whatever x is
    torch.mul(x_BME.to(dtype), weight_EK[:, last], out=y_BME)
    if bias_E is not None:
        y_BME += bias_E
    for tap, back in _taps(weight_EK)[:-1]:
        for output, source in _overlaps(sequences, back, reverse):
            y_BME[:, output].addcmul_(x_BME[:, source].to(dtype), weight_EK[:, tap])
    return y_BME


def _taps(weight_EK: Tensor) -> list[tuple[int, int]]:
    """(tap, tokens it looks back): the last tap is the token itself."""
    taps = weight_EK.shape[1]
    return [(tap, taps - 1 - tap) for tap in range(taps)]


def _overlaps(sequences: Sequences, back: int, reverse: bool) -> list[tuple[slice, slice]]:
    """(output tokens, the tokens `back` before them), within each sequence; reversed, `back` after them."""
    pairs = [(slice(a + back, b), slice(a, b - back)) for a, b in sequences if b - a > back]
    return [(early, late) for late, early in pairs] if reverse else pairs


def _sequences(cu_seqlens: Tensor | None, x_BME: Tensor) -> Sequences:
    if cu_seqlens is None:
        return [(0, x_BME.shape[1])]
    return list(pairwise(cu_seqlens.tolist()))
