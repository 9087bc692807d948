"""A Mamba mixer put together from the other ops.

It runs wherever these run, and is the truth for the fused kernels: Algorithm 1 of arXiv 2401.09417, lines 4-20.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.causal_conv1d.op import causal_conv1d
from longvision.ops.mamba_inner.walk import Walk
from longvision.ops.selective_scan.op import selective_scan


def composed(
    x_BMD: Tensor,
    walks: Sequence[Walk],
    in_proj_FD: Tensor | None = None,
    out_proj_DE: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """(B, M, D) -> (B, M, D); arguments as in `mamba_inner`."""
    xz_BMF = x_BMD if in_proj_FD is None else F.linear(x_BMD, in_proj_FD)
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    # Each is weighed before they are summed: near the largest half-precision number the sum overflows, the mean does
    # not.
    y_BME = sum(_walked(x_BME, walk, cu_seqlens) / len(walks) for walk in walks) * F.silu(z_BME)
    return y_BME if out_proj_DE is None else F.linear(y_BME, out_proj_DE)


def _walked(x_BME: Tensor, walk: Walk, cu_seqlens: Tensor | None) -> Tensor:
    """(B, M, E) -> (B, M, E): convolution, then the scan with step, B and C made from its output."""
    rank, states = walk.dt_proj_ER.shape[1], walk.A_log_EN.shape[1]
    x_BME = causal_conv1d(x_BME, walk.filter_EK, walk.filter_bias_E, True, walk.reverse, cu_seqlens)
    low_BMR, B_BMN, C_BMN = _projected(x_BME, walk.x_proj_PE).split([rank, states, states], dim=-1)
    return selective_scan(
        x_BME,
        F.linear(low_BMR.to(x_BME.dtype), walk.dt_proj_ER),  # its bias is added in float32, inside the scan
        -torch.exp(walk.A_log_EN.to(torch.promote_types(walk.A_log_EN.dtype, torch.float32))),
        B_BMN,
        C_BMN,
        walk.D_E,
        delta_bias_E=walk.dt_bias_E,
        delta_softplus=True,
        reverse=walk.reverse,
        cu_seqlens=cu_seqlens,
    )


def _projected(x_BME: Tensor, x_proj_PE: Tensor) -> Tensor:
    """(B, M, E) -> (B, M, P). In float32 where x is float16: the gradients of B and C are sums over all channels, which
    overflow where nothing else does."""
    if x_BME.dtype != torch.float16:
        return F.linear(x_BME, x_proj_PE)
    with torch.autocast(x_BME.device.type, enabled=False):
        return F.linear(x_BME.float(), x_proj_PE.float())
