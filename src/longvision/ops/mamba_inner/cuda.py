"""A Mamba mixer on a GPU, by Triton kernels (ops/kernels/triton/) and torch's matrix products.

Forward: the input projection. Then in each direction one kernel for convolution, SiLU, projections and softplus, and
one for the scan, which in the last direction adds what the other gave, in float32, and applies the gate. Then the
output projection. Kept are what came before the gate, and the states between chunks of tokens; all else is computed
again from the input: it is products of matrices, which a GPU has time for.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops.kernels.cpp import dense_rows
from longvision.ops.kernels.triton.layout import kept_shape, sequence_numbers
from longvision.ops.mamba_inner.walk import Inner, Walk


class Kept(NamedTuple):
    """For the backward: the mean of the directions before the gate, and of each walk the states before its chunks."""

    ungated_BME: Tensor
    nothing: Tensor
    states_WBKEN: Tensor


def kept_shapes(x_BMD: Tensor, inner: Inner, keep: bool) -> tuple[tuple[int, ...], ...]:
    """Of each tensor of `Kept`."""
    if not keep:
        return (0,), (0,), (0,)
    (batch, tokens, _), (width, states) = x_BMD.shape, inner.walks[0].A_log_EN.shape
    return (batch, tokens, width), (0,), (len(inner.walks), *kept_shape(batch, tokens, width, states))


def forward(x_BMD: Tensor, inner: Inner, keep: bool) -> tuple[Tensor, Kept]:
    """-> (B, M, D), and what the backward needs (empty unless `keep`)."""
    gated_BME, kept = forward_between(project_in(x_BMD, inner), inner, keep)
    if inner.out_proj_DE is None:
        return gated_BME, kept
    return F.linear(gated_BME, inner.out_proj_DE.to(x_BMD.dtype)), kept


def project_in(x_BMD: Tensor, inner: Inner) -> Tensor:
    """(B, M, D) -> x and z, (B, M, 2 E)."""
    if inner.in_proj_FD is None:
        return dense_rows(x_BMD)
    return F.linear(x_BMD, inner.in_proj_FD.to(x_BMD.dtype))


def forward_between(xz_BMF: Tensor, inner: Inner, keep: bool) -> tuple[Tensor, Kept]:
    """Between the projections: (B, M, 2 E) -> gated (B, M, E), and what the backward needs."""
    from longvision.ops.kernels.triton import scan

    ungated, nothing, states = kept_shapes(xz_BMF, inner, keep)
    kept = Kept(xz_BMF.new_empty(ungated), xz_BMF.new_empty(nothing), xz_BMF.new_empty(states, dtype=torch.float32))
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    sequence_M = sequence_numbers(inner.cu_seqlens, x_BME)
    y_BME = None
    for i, walk in enumerate(inner.walks):
        last = i + 1 == len(inner.walks)
        y_BME = scan.forward(
            _scan(x_BME, walk, sequence_M)[0],
            z_BME=z_BME if last else None,
            other_BME=y_BME,
            scale=1 / len(inner.walks),
            out=x_BME.new_empty(x_BME.shape, dtype=xz_BMF.dtype if last else torch.float32),
            ungated=kept.ungated_BME if last and keep else None,
            states=kept.states_WBKEN[i] if keep else None,
        )
    assert y_BME is not None
    return y_BME, kept


def backward(grad_BMD: Tensor, kept: Kept, x_BMD: Tensor, inner: Inner) -> list[Tensor]:
    """Gradients of x, of each walk's parameters, and of the projections that there are, each in its tensor's dtype."""
    from longvision.ops.kernels.triton import gate

    xz_BMF = project_in(x_BMD, inner)
    x_BME, z_BME = xz_BMF.chunk(2, dim=-1)
    dxz_BMF = torch.empty_like(xz_BMF, memory_format=torch.contiguous_format)
    dx_BME, dz_BME = dxz_BMF.chunk(2, dim=-1)
    grad_BMD = grad_BMD.to(xz_BMF.dtype).contiguous()
    grad_BME, gated_BME = grad_BMD, None
    if inner.out_proj_DE is not None:
        grad_BME = grad_BMD @ inner.out_proj_DE.to(xz_BMF.dtype)
        gated_BME = torch.empty_like(kept.ungated_BME)
    scale = 1 / len(inner.walks)
    dy_BME = gate.backward(grad_BME, kept.ungated_BME, z_BME, dz_BME, out=gated_BME, scale=scale)

    sequence_M = sequence_numbers(inner.cu_seqlens, x_BME)
    of_walks: list[Tensor] = []
    for i, (walk, states_BKEN) in enumerate(zip(inner.walks, kept.states_WBKEN)):
        of_walks += _walk_backward(dy_BME, dx_BME, x_BME, walk, states_BKEN, sequence_M, add=i > 0)

    dx_BMD, of_projections = dxz_BMF, []
    if inner.in_proj_FD is not None:
        of_projections.append(_weight_gradient(dxz_BMF, x_BMD, inner.in_proj_FD))
        dx_BMD = dxz_BMF @ inner.in_proj_FD.to(dxz_BMF.dtype)
    if inner.out_proj_DE is not None:
        assert gated_BME is not None
        of_projections.append(_weight_gradient(grad_BMD, gated_BME, inner.out_proj_DE))
    return [dx_BMD, *of_walks, *of_projections]


def _scan(x_BME: Tensor, walk: Walk, sequence_M: Tensor | None, keep_low: bool = False) -> Any:
    """-> what the direction's scan reads, and if asked the low-rank step (B, M, R)."""
    from longvision.ops.kernels.triton.project import projected
    from longvision.ops.kernels.triton.scan import Scan

    of_step = walk.x_proj_PE, walk.dt_proj_ER, walk.dt_bias_E
    u_BME, step_BME, BC_BMN2, low_BMR = projected(
        x_BME, walk.filter_EK, walk.filter_bias_E, *of_step, walk.reverse, sequence_M, keep_low
    )
    scan = Scan(
        *(u_BME, step_BME, BC_BMN2, walk.A_log_EN.contiguous(), walk.D_E.contiguous(), None, sequence_M),
        softplus="taken",
        log_decay=True,
        reverse=walk.reverse,
    )
    return scan, low_BMR


def _walk_backward(
    dy_BME: Tensor,
    dx_BME: Tensor,
    x_BME: Tensor,
    walk: Walk,
    states_BKEN: Tensor,
    sequence_M: Tensor | None,
    add: bool,
) -> list[Tensor]:
    """Writes the gradient of x, or adds to it; -> gradients of the walk's tensors."""
    from longvision.ops.kernels.triton import convolution, scan

    call, low_BMR = _scan(x_BME, walk, sequence_M, keep_low=True)
    grads = scan.backward(call, dy_BME, states_BKEN)
    # The gradients of B and C are sums over all channels: half precision would overflow where nothing else does.
    # bfloat16 does not, and its rounding is that of every other product.
    wide = torch.float32 if x_BME.dtype == torch.float16 else x_BME.dtype
    dstep_TE = grads.dstep_BME.flatten(0, 1).to(wide)
    dlow_TR = dstep_TE @ walk.dt_proj_ER.to(wide)
    dB_TN, dC_TN = grads.dBC_BMN2.flatten(0, 1).to(wide).unbind(-1)
    dprojection_TP = torch.cat((dlow_TR, dB_TN, dC_TN), dim=-1)
    du_TE = torch.addmm(grads.dx_BME.flatten(0, 1).to(wide), dprojection_TP, walk.x_proj_PE.to(wide))
    dx_proj_PE = dprojection_TP.t() @ call.x_BME.flatten(0, 1).to(wide)
    ddt_proj_ER = dstep_TE.t() @ low_BMR.flatten(0, 1).to(wide)
    dfilter_EK, dfilter_bias_E = convolution.backward(
        *(du_TE.view(x_BME.shape), x_BME, walk.filter_EK, walk.filter_bias_E, True, walk.reverse, sequence_M),
        dx_BME,
        add=add,
    )
    dA_log_EN = grads.dA_EN * -walk.A_log_EN.float().exp()
    found = dfilter_EK, dfilter_bias_E, dx_proj_PE, ddt_proj_ER, grads.dbias_E, dA_log_EN, grads.dD_E
    return [grad.to(tensor.dtype) for grad, tensor in zip(found, walk.tensors())]


def _weight_gradient(grad_BMO: Tensor, input_BMI: Tensor, weight_OI: Tensor) -> Tensor:
    return (grad_BMO.flatten(0, 1).t() @ input_BMI.flatten(0, 1)).to(weight_OI.dtype)
