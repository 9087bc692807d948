"""The short depthwise convolution before the scan, by torch's own: the specification for kernels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops import common


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
    x = common.widened(x_BME)
    weight_E1K, bias = weight_EK.to(x.dtype).unsqueeze(1), None if bias_E is None else bias_E.to(x.dtype)

    def convolve(x_BEM: Tensor) -> Tensor:
        return F.conv1d(x_BEM, weight_E1K, bias, groups=x_BEM.shape[1])

    y_BME = causal(convolve, weight_EK.shape[1], x, reverse, cu_seqlens)
    return (F.silu(y_BME) if silu else y_BME).to(x_BME.dtype)


def causal(
    convolve: Callable[[Tensor], Tensor], taps: int, x_BME: Tensor, reverse: bool, cu_seqlens: Tensor | None
) -> Tensor:
    """(B, M, E) -> (B, M, E). Makes a convolution of `taps` taps, (B, E, M + taps - 1) -> (B, E, M), a causal one.

    It sees as many zeros as it looks back before each sequence, and with `reverse` the tokens in reverse order.
    """
    if reverse:
        x_BME = x_BME.flip(1)
    if cu_seqlens is None:
        y_BME = convolve(F.pad(x_BME.mT, (taps - 1, 0))).mT
    else:
        ends = cu_seqlens.to(x_BME.device, torch.int64)
        starts = x_BME.shape[1] - ends[1:] if reverse else ends[:-1]
        first_M = torch.zeros_like(x_BME[0, :, 0], dtype=torch.int64).index_fill(0, starts, 1)
        place_M = torch.arange(x_BME.shape[1], device=x_BME.device) + (taps - 1) * first_M.cumsum(0)
        length = x_BME.shape[1] + (taps - 1) * len(starts)
        apart_BME = x_BME.new_zeros(x_BME.shape[0], length, x_BME.shape[2]).index_copy(1, place_M, x_BME)
        y_BME = convolve(apart_BME.mT).mT[:, place_M - (taps - 1)]
    return y_BME.flip(1) if reverse else y_BME
