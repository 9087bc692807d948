"""The short depthwise convolution in plain torch, as sums of shifted views: no padding, no transposes, any device."""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.causal_conv1d.inputs import ConvInputs

Sequences = list[tuple[int, int]]
CACHE = 2**18  # elements of a (rows, M, E) tensor: few enough rows of the batch that what is between stays in the cache


def forward(inputs: ConvInputs) -> Tensor:
    """-> (B, M, E)."""
    x_BME, weight_EK, bias_E, cu_seqlens, silu, reverse = inputs
    sequences = _sequences(cu_seqlens, x_BME)
    y_BME = x_BME.new_empty(x_BME.shape)
    for rows in _row_groups(x_BME):
        found_BME = _convolve(x_BME[rows], weight_EK, bias_E, reverse, sequences)
        y_BME[rows] = F.silu(found_BME, inplace=True) if silu else found_BME
    return y_BME


def backward(grad_BME: Tensor, inputs: ConvInputs) -> tuple[Tensor, Tensor, Tensor]:
    """-> gradients of x, in its dtype, weight and bias. What SiLU saw is computed again, not saved."""
    x_BME, weight_EK, _, cu_seqlens, _, _ = inputs
    sequences = _sequences(cu_seqlens, x_BME)
    dx_BME = x_BME.new_empty(x_BME.shape)
    dweight_EK = torch.zeros_like(weight_EK, dtype=torch.promote_types(x_BME.dtype, torch.float32))
    dbias_E = torch.zeros_like(dweight_EK[:, 0])
    for rows in _row_groups(x_BME):
        own = inputs._replace(x_BME=x_BME[rows])
        dx_BME[rows] = _backward_rows(grad_BME[rows], own, sequences, dweight_EK, dbias_E)
    return dx_BME, dweight_EK, dbias_E


def _backward_rows(
    grad_BME: Tensor, inputs: ConvInputs, sequences: Sequences, dweight_EK: Tensor, dbias_E: Tensor
) -> Tensor:
    """-> gradient of x; adds to those of weight and bias."""
    x_BME, weight_EK, bias_E, _, silu, reverse = inputs
    grad_BME = grad_BME.to(dbias_E.dtype)
    if silu:
        before_silu_BME = _convolve(x_BME, weight_EK, bias_E, reverse, sequences)
        grad_BME = torch.ops.aten.silu_backward(grad_BME, before_silu_BME)
    for tap, back in _taps(weight_EK):
        for output, source in _overlaps(sequences, back, reverse):
            dweight_EK[:, tap] += (grad_BME[:, output] * x_BME[:, source]).sum((0, 1))
    dbias_E += grad_BME.sum((0, 1))
    # The adjoint of looking back by k tokens is looking ahead by k tokens.
    return _convolve(grad_BME, weight_EK, None, not reverse, sequences)


def _row_groups(x_BME: Tensor) -> Iterator[slice]:
    batch, tokens, width = x_BME.shape
    rows = max(1, CACHE // (tokens * width))
    for start in range(0, batch, rows):
        yield slice(start, start + rows)


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
