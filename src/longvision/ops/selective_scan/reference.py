"""The selective scan as the paper writes it, one token after the other: the specification for kernels.

Plain torch and slow; differentiated by autograd. Right in float64 (nothing in it rounds to a lower precision).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    x_BME: Tensor,
    delta_BME: Tensor,
    A_EN: Tensor,
    B_BMN: Tensor,
    C_BMN: Tensor,
    D_E: Tensor | None = None,
    z_BME: Tensor | None = None,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    initial_state_BEN: Tensor | None = None,
    return_last_state: bool = False,
    grid: tuple[int, int] | None = None,
) -> Any:
    """(B, M, E) -> (B, M, E). Algorithm 1 of arXiv 2401.09417, lines 10-16; arguments as in `selective_scan`.

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t
    y_t = (h_t C_t + D x_t) silu(z_t)
    """
    dtype = torch.promote_types(x_BME.dtype, torch.float32)
    x, A = x_BME.to(dtype), A_EN.to(dtype)
    B_BMEN, C_BMEN = (_of_channels(t.to(dtype), x) for t in (B_BMN, C_BMN))
    delta = step_size(delta_BME, delta_bias_E, delta_softplus, dtype)
    resets = reset_positions(cu_seqlens, reverse)

    h_BEN = x.new_zeros(x.shape[0], *A.shape) if initial_state_BEN is None else initial_state_BEN.to(dtype)
    y_by_token: list[Tensor] = [h_BEN] * x.shape[1]
    for t in token_order(x.shape[1], reverse, grid):
        if t in resets:
            h_BEN = torch.zeros_like(h_BEN)
        decay_BEN = torch.exp(delta[:, t, :, None] * A)
        h_BEN = decay_BEN * h_BEN + (delta[:, t] * x[:, t])[:, :, None] * B_BMEN[:, t]
        y_by_token[t] = (h_BEN * C_BMEN[:, t]).sum(-1)

    y_BME = torch.stack(y_by_token, dim=1)
    if D_E is not None:
        y_BME = y_BME + D_E.to(dtype) * x
    if z_BME is not None:
        y_BME = y_BME * F.silu(z_BME.to(dtype))
    y_BME = y_BME.to(x_BME.dtype)
    return (y_BME, h_BEN) if return_last_state else y_BME


def token_order(tokens: int, reverse: bool, grid: tuple[int, int] | None) -> list[int]:
    """The tokens as the scan takes them: as they lie, or the pixels of a grid column by column."""
    rows, columns = (1, tokens) if grid is None else grid
    order = [row * columns + column for column in range(columns) for row in range(rows)]
    return order[::-1] if reverse else order


def _of_channels(B: Tensor, x_BME: Tensor) -> Tensor:
    """B or C: (B, M, N), (B, M, G, N) or (E, N) -> (B, M, E, N), of size 1 where all have the same."""
    if B.ndim == 2:
        return B.expand(1, x_BME.shape[1], *B.shape)
    if B.ndim == 3:
        return B.unsqueeze(2)
    return B.repeat_interleave(x_BME.shape[2] // B.shape[2], dim=2)


def step_size(delta_BME: Tensor, bias_E: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    """(B, M, E) -> (B, M, E), the bias added and softplus taken in `dtype`: half precision loses the bias."""
    delta_BME = biased(delta_BME, bias_E, dtype)
    # From 40 on log(1 + exp(x)) is x to the last digit, also in float64; torch's own threshold, 20, is for float32.
    return F.softplus(delta_BME, threshold=40) if softplus else delta_BME


def biased(delta_BME: Tensor, bias_E: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, M, E) -> (B, M, E) in `dtype`."""
    delta_BME = delta_BME.to(dtype)
    return delta_BME if bias_E is None else delta_BME + bias_E.to(dtype)


def reset_positions(cu_seqlens: Tensor | None, reverse: bool) -> list[int]:
    """The tokens at which a packed sequence begins, in the order of the scan: its first, or reversed its last."""
    if cu_seqlens is None:
        return []
    found = cu_seqlens.tolist()
    return [end - 1 for end in found[1:]] if reverse else found[:-1]
