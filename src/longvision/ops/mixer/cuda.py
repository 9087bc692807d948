"""A Mamba mixer on a GPU, by Triton kernels (ops/kernels/triton/) and torch's matmuls.

Forward: norm and input projection. Then in each direction one kernel for convolution, SiLU, projections and softplus,
and one for the scan, which in the last direction adds what the other gave, in float32, and applies the gate. Then the
output projection. Saved are what came before the gate, and the states between chunks of tokens; all else is computed
again from the input: it is matmuls, which a GPU has time for.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.kernels.cpp.record import contiguous_channels
from longvision.ops.kernels.triton.layout import sequence_numbers, states_shape
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection


class Saved(NamedTuple):
    """For the backward: the mean of the directions before the gate, and of each of W directions the states before its
    chunks. Empty, or all there."""

    ungated_BME: Tensor
    nothing: Tensor
    states_WBKEN: Tensor


def saved_shapes(inputs: MixerInputs, save_for_backward: bool) -> tuple[tuple[int, ...], ...]:
    """Of each tensor of `Saved`."""
    if not save_for_backward:
        return (0,), (0,), (0,)
    (batch, tokens, _), (width, states) = inputs.x_BMD.shape, inputs.directions[0].A_log_EN.shape
    return (batch, tokens, width), (0,), (len(inputs.directions), *states_shape(batch, tokens, width, states))


def forward(inputs: MixerInputs, save_for_backward: bool) -> tuple[Tensor, Saved]:
    """-> the output (B, M, D), and what the backward needs (empty unless `save_for_backward`)."""
    from longvision.ops.kernels.triton import scan

    normed_BMD, _ = _normed(inputs)
    xz_BMF = F.linear(normed_BMD, inputs.in_proj_FD.to(inputs.dtype))
    ungated, nothing, states = saved_shapes(inputs, save_for_backward)
    saved = Saved(xz_BMF.new_empty(ungated), xz_BMF.new_empty(nothing), xz_BMF.new_empty(states, dtype=torch.float32))
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    sequence_M = sequence_numbers(inputs.cu_seqlens, x_BME)
    y_BME = None
    for i, direction in enumerate(inputs.directions):
        last = i + 1 == len(inputs.directions)
        y_BME = scan.forward(
            _scan(x_BME, direction, sequence_M)[0],
            z_BME=z_BME if last else None,
            other_BME=y_BME,
            scale=1 / len(inputs.directions),
            out=x_BME.new_empty(x_BME.shape, dtype=inputs.dtype if last else torch.float32),
            ungated=saved.ungated_BME if last and save_for_backward else None,
            states=saved.states_WBKEN[i] if save_for_backward else None,
        )
    assert y_BME is not None
    out_BMD = F.linear(y_BME, inputs.out_proj_DE.to(inputs.dtype))
    if not inputs.residual:
        return out_BMD, saved
    # However the tokens lie: an op's output is contiguous, as its fake one is.
    total_BMD = torch.empty_like(inputs.x_BMD, memory_format=torch.contiguous_format)
    return torch.add(inputs.x_BMD, out_BMD, out=total_BMD), saved


def backward(grad_BMD: Tensor, saved: Saved, inputs: MixerInputs) -> list[Tensor]:
    """Gradients of `inputs.tensors()`, each in its tensor's dtype."""
    from longvision.ops.kernels.triton import gate, norm

    dtype = inputs.dtype
    normed_BMD, inverse_BM = _normed(inputs)
    xz_BMF = F.linear(normed_BMD, inputs.in_proj_FD.to(dtype))
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    dxz_BMF = torch.empty_like(xz_BMF, memory_format=torch.contiguous_format)
    dx_BME, dz_BME = dxz_BMF.chunk(2, dim=-1)
    dout_BMD = grad_BMD.to(dtype).contiguous()
    gated_BME = torch.empty_like(saved.ungated_BME)
    dgated_BME, scale = dout_BMD @ inputs.out_proj_DE.to(dtype), 1 / len(inputs.directions)
    dy_BME = gate.backward(dgated_BME, saved.ungated_BME, z_BME, dz_BME, out=gated_BME, scale=scale)

    sequence_M = sequence_numbers(inputs.cu_seqlens, x_BME)
    of_directions: list[Tensor] = []
    for i, (direction, states_BKEN) in enumerate(zip(inputs.directions, saved.states_WBKEN)):
        of_directions += _direction_backward(dy_BME, dx_BME, x_BME, direction, states_BKEN, sequence_M, add=i > 0)

    of_weights = [
        _weight_gradient(dxz_BMF, normed_BMD, inputs.in_proj_FD),
        _weight_gradient(dout_BMD, gated_BME, inputs.out_proj_DE),
    ]
    dx_BMD = dxz_BMF @ inputs.in_proj_FD.to(dtype)
    around_BMD = grad_BMD if inputs.residual else None
    if inputs.norm_weight_D is not None:
        assert inverse_BM is not None
        dx_BMD, dnorm_D = norm.backward(dx_BMD, inverse_BM, inputs.x_BMD, inputs.norm_weight_D, passed_BMD=around_BMD)
        of_weights.append(dnorm_D)
    elif around_BMD is not None:
        dx_BMD = dx_BMD + around_BMD
    return [dx_BMD.to(inputs.x_BMD.dtype), *of_directions, *of_weights]


def _normed(inputs: MixerInputs) -> tuple[Tensor, Tensor | None]:
    """-> what the input projection takes (B, M, D), and 1 / rms (B, M) if there is a norm."""
    from longvision.ops.kernels.triton import norm

    if inputs.norm_weight_D is None:
        return contiguous_channels(inputs.x_BMD.to(inputs.dtype)), None
    return norm.forward(inputs.x_BMD, inputs.norm_weight_D, inputs.eps, inputs.dtype)


def _scan(x_BME: Tensor, direction: ScanDirection, sequence_M: Tensor | None, keep_low: bool = False) -> Any:
    """-> what the direction's scan reads, and if asked the low-rank step (B, M, R)."""
    from longvision.ops.kernels.triton.project import projected
    from longvision.ops.kernels.triton.scan import Scan

    reverse = direction.reverse
    u_BME, step_BME, BC_BMN2, low_BMR = projected(x_BME, *direction[:5], reverse, sequence_M, keep_low)
    own = direction.A_log_EN.contiguous(), direction.D_E.contiguous(), None, sequence_M
    scan = Scan(u_BME, step_BME, BC_BMN2, *own, softplus="taken", log_decay=True, reverse=reverse)
    return scan, low_BMR


def _direction_backward(
    dy_BME: Tensor,
    dx_BME: Tensor,
    x_BME: Tensor,
    direction: ScanDirection,
    states_BKEN: Tensor,
    sequence_M: Tensor | None,
    add: bool,
) -> list[Tensor]:
    """Writes the gradient of x, or adds to it; -> gradients of the direction's tensors."""
    from longvision.ops.kernels.triton import convolution, scan

    call, low_BMR = _scan(x_BME, direction, sequence_M, keep_low=True)
    grads = scan.backward(call, dy_BME, states_BKEN)
    # The gradients of B and C are sums over all channels: half precision would overflow where nothing else does.
    # bfloat16 does not, and its rounding is that of every other matmul.
    wide = torch.float32 if x_BME.dtype == torch.float16 else x_BME.dtype
    dstep_TE = grads.dstep_BME.flatten(0, 1).to(wide)
    dlow_TR = dstep_TE @ direction.dt_proj_ER.to(wide)
    dB_TN, dC_TN = grads.dBC_BMN2.flatten(0, 1).to(wide).unbind(-1)
    dprojection_TP = torch.cat((dlow_TR, dB_TN, dC_TN), dim=-1)
    du_TE = torch.addmm(grads.dx_BME.flatten(0, 1).to(wide), dprojection_TP, direction.x_proj_PE.to(wide))
    dx_proj_PE = dprojection_TP.t() @ call.x_BME.flatten(0, 1).to(wide)
    ddt_proj_ER = dstep_TE.t() @ low_BMR.flatten(0, 1).to(wide)
    own = direction.filter_EK, direction.filter_bias_E, True, direction.reverse
    of_filter = convolution.backward(du_TE.view(x_BME.shape), x_BME, *own, sequence_M, dx_BME, add=add)
    dA_log_EN = grads.dA_EN * -direction.A_log_EN.float().exp()
    found = *of_filter, dx_proj_PE, ddt_proj_ER, grads.dbias_E, dA_log_EN, grads.dD_E
    return [grad.to(tensor.dtype) for grad, tensor in zip(found, direction[:-1])]


def _weight_gradient(grad_BMO: Tensor, input_BMI: Tensor, weight_OI: Tensor) -> Tensor:
    return (grad_BMO.flatten(0, 1).t() @ input_BMI.flatten(0, 1)).to(weight_OI.dtype)
