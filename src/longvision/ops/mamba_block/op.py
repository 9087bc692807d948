"""What a residual block calls: one fused node where there are kernels, else the ops that it is made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longvision.ops.backends import choose_backend
from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.checks import check_fits, columns
from longvision.ops.kept import check_kept, may_need_backward
from longvision.ops.mamba_block import cpu, cuda
from longvision.ops.mamba_inner.op import FUSED, mamba_inner
from longvision.ops.mamba_inner.walk import Inner, Walk, check_walks, flat, unflat
from longvision.ops.packing import check_cu_seqlens
from longvision.ops.precision import mixed_dtype
from longvision.ops.rms_norm.op import rms_norm
from longvision.ops.tangents import refuse_tangents

BLOCKS: dict[str, Any] = {"cpu": cpu, "triton": cuda}  # the block around each of `FUSED`


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
    backend = choose_backend(None, x_BMD.device.type, dtype)
    if not fits or backend not in BLOCKS:
        normed_BMD = rms_norm(x_BMD, norm_weight_D, eps)
        return x_BMD + mamba_inner(normed_BMD, walks, in_proj_FD, out_proj_DE, cu_seqlens).to(x_BMD.dtype)
    parameters, directions = flat(walks)
    tensors = (x_BMD, norm_weight_D, in_proj_FD, out_proj_DE, *parameters)
    refuse_tangents("mamba_block", *tensors)
    keep = may_need_backward(tensors)
    projected = parameters, directions, in_proj_FD, out_proj_DE, cu_seqlens
    return _mamba_block(x_BMD, norm_weight_D, *projected, eps, dtype, backend, keep)[0]


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
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> the output, and what the mixer's backward needs: its backend's `Kept` (empty unless `keep`)."""
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    with torch.autocast(x.device.type, enabled=False):
        out, kept = BLOCKS[backend].forward(x, norm_weight, eps, dtype, inner, keep)
    return out, *kept


@_mamba_block.register_fake
def _(x, norm_weight, parameters, reverse, in_proj, out_proj, cu_seqlens, eps, dtype, backend, keep):
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    *shapes, states = FUSED[backend].kept_shapes(x, inner, keep)
    return x.new_empty(x.shape), *(x.new_empty(shape, dtype=dtype) for shape in shapes), x.new_empty(states)


@torch.library.custom_op("longvision::mamba_block_backward", mutates_args=())
def _mamba_block_backward(
    grad: Tensor,
    kept: Sequence[Tensor],
    x: Tensor,
    norm_weight: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    in_proj: Tensor,
    out_proj: Tensor,
    cu_seqlens: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """-> gradients of x, norm_weight, each parameter, in_proj, out_proj."""
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    kept_of_mixer = FUSED[backend].Kept(*kept)
    with torch.autocast(x.device.type, enabled=False):
        return BLOCKS[backend].backward(grad, kept_of_mixer, x, norm_weight, eps, dtype, inner)


@_mamba_block_backward.register_fake
def _(grad, kept, x, norm_weight, parameters, reverse, in_proj, out_proj, cu_seqlens, eps, dtype, backend):
    return [tensor.new_empty(tensor.shape) for tensor in (x, norm_weight, *parameters, in_proj, out_proj)]


def _setup_context(ctx, inputs, output) -> None:
    x, norm_weight, parameters, ctx.reverse, in_proj, out_proj, cu_seqlens, *ctx.options, _ = inputs
    ctx.set_materialize_grads(False)  # what is kept gets none: zeros of its size would be made for it
    ctx.save_for_backward(*output[1:], x, norm_weight, in_proj, out_proj, cu_seqlens, *parameters)


def _backward(ctx, grad, *_grads_of_kept):
    saved = ctx.saved_tensors  # asked for once: what a checkpoint computes again, it hands out once
    *kept, x, norm_weight, in_proj, out_proj, cu_seqlens = saved[:8]
    parameters = saved[8:]
    if grad is None:
        return None, None, [None] * len(parameters), *[None] * 8
    check_kept("mamba_block", kept[-1])
    projected = parameters, ctx.reverse, in_proj, out_proj, cu_seqlens
    dx, dnorm, *rest = _mamba_block_backward(grad, kept, x, norm_weight, *projected, *ctx.options)
    return dx, dnorm, rest[: len(parameters)], None, *rest[len(parameters) :], *[None] * 5


_mamba_block.register_autograd(_backward, setup_context=_setup_context)
