"""What a mixer calls between its projections: one fused node where there are kernels, else the ops it is made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longvision.ops.mamba_inner import cpu
from longvision.ops.mamba_inner.composed import composed
from longvision.ops.mamba_inner.walk import Walk
from longvision.ops.packing import check_cu_seqlens
from longvision.ops.selective_scan.op import choose_backend

PARAMETERS = len(Walk._fields) - 1  # tensors of a walk


def mamba_inner(
    xz_BMF: Tensor, walks: Sequence[Walk], out_proj_DE: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """(B, M, 2 E) -> (B, M, D), or without `out_proj` (B, M, E). Lines 7-20 of Algorithm 1 of arXiv 2401.09417.

    In each direction: depthwise convolution, SiLU, projections to step, B and C, selective scan. The mean of the
    directions is gated by SiLU(z) and projected.

    Args:
        xz_BMF: the input projection's output, x and z of E channels each.
        walks: one direction or two, with their parameters; see `Walk`.
        out_proj_DE: weight of the output projection; None leaves it to the caller.
        cu_seqlens: borders of packed sequences, as in `selective_scan`.
    """
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, xz_BMF)
    if choose_backend(None, xz_BMF.device.type, xz_BMF.dtype) != "cpu":
        return composed(xz_BMF, walks, out_proj_DE, cu_seqlens)
    parameters = [tensor for walk in walks for tensor in walk.tensors()]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (xz_BMF, *parameters))
    return _mamba_inner(xz_BMF, parameters, [walk.reverse for walk in walks], out_proj_DE, cu_seqlens, keep)[0]


def _walks(parameters: Sequence[Tensor], reverse: Sequence[bool]) -> list[Walk]:
    return [Walk._make([*parameters[i * PARAMETERS :][:PARAMETERS], way]) for i, way in enumerate(reverse)]


@torch.library.custom_op("longvision::mamba_inner", mutates_args=())
def _mamba_inner(
    xz: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    out_proj: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> the output, and what the backward needs: each walk's projections and states."""
    with torch.autocast("cpu", enabled=False):
        out, kept = cpu.forward(xz, _walks(parameters, reverse), out_proj, cu_seqlens, keep)
    return out, kept.projections_WBMP, kept.states_WBKNE


@_mamba_inner.register_fake
def _(xz, parameters, reverse, out_proj, cu_seqlens, keep):
    kept = cpu.new_kept(xz, _walks(parameters, reverse), cu_seqlens, keep)
    width = xz.shape[-1] // 2 if out_proj is None else out_proj.shape[0]
    return xz.new_empty(*xz.shape[:2], width), *kept


@torch.library.custom_op("longvision::mamba_inner_backward", mutates_args=())
def _mamba_inner_backward(
    grad: Tensor,
    projections: Tensor,
    states: Tensor,
    xz: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    out_proj: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """-> gradients of xz, of each parameter, and, where there is one, of out_proj."""
    walks = _walks(parameters, reverse)
    with torch.autocast("cpu", enabled=False):
        grads = cpu.backward(grad, cpu.Kept(projections, states), xz, walks, out_proj, cu_seqlens)
    return [grads.xz_BMF, *grads.parameters, *([] if grads.out_proj_DE is None else [grads.out_proj_DE])]


@_mamba_inner_backward.register_fake
def _(grad, projections, states, xz, parameters, reverse, out_proj, cu_seqlens):
    tensors = [xz, *parameters, *([] if out_proj is None else [out_proj])]
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _setup_context(ctx, inputs, output) -> None:
    xz, parameters, ctx.reverse, out_proj, cu_seqlens, _ = inputs
    ctx.save_for_backward(output[1], output[2], xz, out_proj, cu_seqlens, *parameters)


def _backward(ctx, grad, _projections, _states):
    projections, states, xz, out_proj, cu_seqlens, *parameters = ctx.saved_tensors
    dxz, *rest = _mamba_inner_backward(grad, projections, states, xz, parameters, ctx.reverse, out_proj, cu_seqlens)
    dout_proj = None if out_proj is None else rest[-1]
    return dxz, rest[: len(parameters)], None, dout_proj, None, None


_mamba_inner.register_autograd(_backward, setup_context=_setup_context)
