"""The short depthwise convolution before the scan, as a sum of shifted copies: the truth for kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_reference(
    x_BME: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None = None,
    silu: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """(B, M, E) -> (B, M, E); arguments as in `causal_conv1d`.

    y_t = bias + sum_k weight_k x_{t - (K-1) + k}; reversed, y_t = bias + sum_k weight_k x_{t + (K-1) - k}.
    """
    tokens, taps = x_BME.shape[1], weight_EK.shape[1]
    sequence_M = _sequence_of_each_token(cu_seqlens, tokens, x_BME.device)
    y_BME = torch.zeros_like(x_BME) if bias_E is None else bias_E.expand_as(x_BME).to(x_BME.dtype)
    for k in range(taps):
        back = (k - taps + 1) if not reverse else (taps - 1 - k)
        y_BME = y_BME + weight_EK[:, k] * _shifted(x_BME, back, sequence_M)
    return F.silu(y_BME) if silu else y_BME


def _shifted(x_BME: Tensor, offset: int, sequence_M: Tensor | None) -> Tensor:
    """x at t + offset, zero beyond the ends of its own sequence."""
    tokens = x_BME.shape[1]
    source = torch.arange(tokens, device=x_BME.device) + offset
    inside = (source >= 0) & (source < tokens)
    source = source.clamp(0, tokens - 1)
    if sequence_M is not None:
        inside = inside & (sequence_M[source] == sequence_M)
    return x_BME[:, source] * inside[:, None].to(x_BME.dtype)


def _sequence_of_each_token(cu_seqlens: Tensor | None, tokens: int, device: torch.device) -> Tensor | None:
    if cu_seqlens is None:
        return None
    return torch.searchsorted(cu_seqlens.to(device), torch.arange(tokens, device=device), right=True)
