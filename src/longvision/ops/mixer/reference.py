"""A Mamba mixer in plain torch: Algorithm 1 of arXiv 2401.09417, lines 2-21, and what the kernels are held against.

The algorithm is written once, of what is called: weights in `mixer_reference`, the modules of a layer, or our ops.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops import common
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection
from longvision.ops.rms_norm.reference import rms_norm_reference
from longvision.ops.selective_scan.reference import selective_scan_reference

Call = Callable[[Tensor], Tensor]


def mixer_reference(
    inputs: MixerInputs,
    convolve: Callable[..., Tensor] = causal_conv1d_reference,
    scan: Callable[..., Tensor] = selective_scan_reference,
) -> Tensor:
    """(B, M, D) -> (B, M, D); `inputs` as the arguments of `mixer`."""
    x_BMD = inputs.x_BMD
    if inputs.norm_weight_D is not None:
        x_BMD = rms_norm_reference(x_BMD, inputs.norm_weight_D, inputs.eps)
    directions = [partial(_along, direction, inputs.cu_seqlens, convolve, scan) for direction in inputs.directions]
    in_proj, out_proj = partial(linear, inputs.in_proj_FD), partial(linear, inputs.out_proj_DE)
    out_BMD = between(x_BMD.to(inputs.dtype), in_proj, directions, out_proj)
    return inputs.x_BMD + out_BMD.to(inputs.x_BMD.dtype) if inputs.residual else out_BMD


def _along(
    own: ScanDirection,
    cu_seqlens: Tensor | None,
    convolve: Callable[..., Tensor],
    scan: Callable[..., Tensor],
    x_BME: Tensor,
) -> Tensor:
    """(B, M, E) -> (B, M, E)."""
    return scanned(
        convolve(x_BME, own.filter_EK, own.filter_bias_E, True, own.reverse, cu_seqlens),
        partial(without_overflow, own.x_proj_PE),
        partial(linear, own.dt_proj_ER),
        (own.dt_proj_ER.shape[1], own.A_log_EN.shape[1]),
        own.A_log_EN,
        own.D_E,
        own.dt_bias_E,
        partial(scan, reverse=own.reverse, cu_seqlens=cu_seqlens),
    )


def between(x_BMD: Tensor, in_proj: Call, directions: Sequence[Call], out_proj: Call) -> Tensor:
    """(B, M, D) -> (B, M, D). Each direction takes the projected x (B, M, E) to its output before the gate."""
    x_BME, z_BME = in_proj(x_BMD).chunk(2, dim=-1)
    # Each is weighed before they are summed: near the largest half-precision number the sum overflows, the mean does
    # not.
    y_BME = sum(along(x_BME) / len(directions) for along in directions)
    return out_proj(y_BME * F.silu(z_BME))


def scanned(
    u_BME: Tensor,
    x_proj: Call,
    dt_proj: Call,
    rank_and_states: tuple[int, int],
    A_log_EN: Tensor,
    D_E: Tensor,
    dt_bias_E: Tensor | None,
    scan: Callable[..., Tensor],
) -> Tensor:
    """(B, M, E) -> (B, M, E): the scan, with step, B and C made from what is scanned."""
    rank, states = rank_and_states
    low_BMR, B_BMN, C_BMN = x_proj(u_BME).split([rank, states, states], dim=-1)
    step_BME = dt_proj(low_BMR.to(u_BME.dtype))  # its bias is added in float32, inside the scan
    A_EN = -torch.exp(common.widened(A_log_EN))
    return scan(u_BME, step_BME, A_EN, B_BMN, C_BMN, D_E, delta_bias_E=dt_bias_E, delta_softplus=True)


def linear(weight_OI: Tensor, x_BMI: Tensor) -> Tensor:
    """(B, M, I) -> (B, M, O), in x's dtype or autocast's, whatever the weight's is."""
    return F.linear(x_BMI, weight_OI.to(x_BMI.dtype))


@torch.fx.wrap  # what it does depends on the dtype
def without_overflow(weight_PE: Tensor, u_BME: Tensor) -> Tensor:
    """`linear`, in float32 where u is float16: the gradients of B and C are sums over all channels, which overflow
    where nothing else does."""
    if u_BME.dtype != torch.float16:
        return linear(weight_PE, u_BME)
    with torch.autocast(u_BME.device.type, enabled=False):
        return F.linear(u_BME.float(), weight_PE.float())
