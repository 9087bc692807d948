"""What a residual block calls: one fused node where there are kernels, else the ops that it is made of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.checks import check_fits, columns
from longvision.ops.kept import check_kept, may_need_backward
from longvision.ops.mamba_block import cpu
from longvision.ops.mamba_inner.composed import composed
from longvision.ops.mamba_inner.cpu import Inner, Kept, kept_shapes
from longvision.ops.mamba_inner.walk import Walk, check_walks, flat, unflat
from longvision.ops.packing import check_cu_seqlens
from longvision.ops.precision import mixed_dtype
from longvision.ops.rms_norm.op import rms_norm
from longvision.ops.selective_scan.op import choose_backend
from longvision.ops.tangents import refuse_tangents


def mamba_block(
    x_BMD: Tensor,
    norm_weight_D: Tensor,
    walks: Sequence[Walk],
    in_proj_FD: Tensor,
    out_proj_DE: Tensor,
    cu_seqlens: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(B, M, D) -> (B, M, D). x + mamba_inner(rms_norm(x)): lines 2-21 of Algorithm 1 of arXiv 2401.09417.

    Computed in x's precision, float32 or better, where the mixer's matrix products may be in a lower one: in that of
    autocast, or of the norm's weight.

    Args:
        x_BMD: tokens.
        norm_weight_D: of the normalisation; eps is added to the mean square.
        walks: one direction or two, with their parameters; see `Walk`.
        in_proj_FD: weight of the input projection, F = 2 E.
        out_proj_DE: weight of the output projection.
        cu_seqlens: borders of packed sequences, as in `selective_scan`.

    Raises:
        TypeError, ValueError: tensors that are none, or do not fit.
    """
    columns("mamba_block", "in_proj", in_proj_FD)  # which is no option here
    check_walks("mamba_block", walks, x_BMD, in_proj_FD, out_proj_DE)
    channels = x_BMD.shape[-1]
    check_fits("mamba_block", "norm_weight", norm_weight_D, (channels,), x_BMD)
    check_fits("mamba_block", "out_proj", out_proj_DE, (channels, in_proj_FD.shape[0] // 2), x_BMD)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BMD)
    dtype = mixed_dtype(norm_weight_D)
    real = torch.promote_types(dtype, torch.float32)
    fits = x_BMD.dtype == real and walks[0].filter_EK.shape[1] <= MOST_TAPS
    if not fits or choose_backend(None, x_BMD.device.type, dtype) != "cpu":
        normed_BMD = rms_norm(x_BMD, norm_weight_D, eps)
        return x_BMD + composed(normed_BMD, walks, in_proj_FD, out_proj_DE, cu_seqlens).to(x_BMD.dtype)
    parameters, directions = flat(walks)
    tensors = (x_BMD, norm_weight_D, in_proj_FD, out_proj_DE, *parameters)
    refuse_tangents("mamba_block", *tensors)
    keep = may_need_backward(tensors)
    projected = parameters, directions, in_proj_FD, out_proj_DE, cu_seqlens
    return _mamba_block(x_BMD, norm_weight_D, *projected, eps, dtype, keep)[0]


@torch.library.custom_op("longvision::mamba_block", mutates_args=())
def _mamba_block(
    x: Tensor,
    norm_weight: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    in_proj: Tensor,
    out_proj: Tensor,
    cu_seqlens: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> the output, and what the backward needs: x and z, each walk's projections and states (empty unless `keep`)."""
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    with torch.autocast("cpu", enabled=False):
        out, kept = cpu.forward(x, norm_weight, eps, dtype, inner, keep)
    return out, *kept


@_mamba_block.register_fake
def _(x, norm_weight, parameters, reverse, in_proj, out_proj, cu_seqlens, eps, dtype, keep):
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    xz, projections, states = kept_shapes(x, inner, keep)
    kept = x.new_empty(xz, dtype=dtype), x.new_empty(projections, dtype=dtype), x.new_empty(states)
    return x.new_empty(x.shape), *kept


@torch.library.custom_op("longvision::mamba_block_backward", mutates_args=())
def _mamba_block_backward(
    grad: Tensor,
    xz: Tensor,
    projections: Tensor,
    states: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    in_proj: Tensor,
    out_proj: Tensor,
    cu_seqlens: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    """-> gradients of x, norm_weight, each parameter, in_proj, out_proj."""
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    with torch.autocast("cpu", enabled=False):
        return cpu.backward(grad, Kept(xz, projections, states), x, norm_weight, eps, dtype, inner)


@_mamba_block_backward.register_fake
def _(grad, xz, projections, states, x, norm_weight, parameters, reverse, in_proj, out_proj, cu_seqlens, eps, dtype):
    return [tensor.new_empty(tensor.shape) for tensor in (x, norm_weight, *parameters, in_proj, out_proj)]


def _setup_context(ctx, inputs, output) -> None:
    x, norm_weight, parameters, ctx.reverse, in_proj, out_proj, cu_seqlens, ctx.eps, ctx.dtype, _ = inputs
    ctx.set_materialize_grads(False)  # what is kept gets none: zeros of its size would be made for it
    ctx.save_for_backward(*output[1:], x, norm_weight, in_proj, out_proj, cu_seqlens, *parameters)


def _backward(ctx, grad, *_grads_of_kept):
    xz, projections, states, x, norm_weight, in_proj, out_proj, cu_seqlens, *parameters = ctx.saved_tensors
    if grad is None:
        return None, None, [None] * len(parameters), *[None] * 7
    check_kept("mamba_block", states)
    projected = parameters, ctx.reverse, in_proj, out_proj, cu_seqlens
    dx, dnorm, *rest = _mamba_block_backward(
        grad, xz, projections, states, x, norm_weight, *projected, ctx.eps, ctx.dtype
    )
    return dx, dnorm, rest[: len(parameters)], None, *rest[len(parameters) :], None, None, None, None


_mamba_block.register_autograd(_backward, setup_context=_setup_context)
