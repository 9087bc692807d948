"""What a mixer is: one fused node where there are kernels, else the ops that it is made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longvision.ops.backends import choose_backend
from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.kept import check_kept, may_need_backward
from longvision.ops.mamba_inner import cpu, cuda, slabs
from longvision.ops.mamba_inner.composed import composed
from longvision.ops.mamba_inner.walk import Inner, Walk, check_walks, flat, unflat
from longvision.ops.packing import check_cu_seqlens
from longvision.ops.precision import mixed_dtype
from longvision.ops.tangents import refuse_tangents

FUSED: dict[str, Any] = {"cpu": cpu, "triton": cuda}  # the backends that have kernels for the whole mixer


def mamba_inner(
    x_BMD: Tensor,
    walks: Sequence[Walk],
    in_proj_FD: Tensor | None = None,
    out_proj_DE: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """(B, M, D) -> (B, M, D). Lines 4-20 of Algorithm 1 of arXiv 2401.09417.

    The input projection gives x and z. In each direction: depthwise convolution of x, SiLU, projections to step, B and
    C, selective scan. The mean of the directions is gated by SiLU(z) and projected.

    Args:
        x_BMD: tokens; without `in_proj`, what it would give, (B, M, 2 E).
        walks: one direction or two, with their parameters; see `Walk`.
        in_proj_FD: weight of the input projection, F = 2 E; None leaves it to the caller.
        out_proj_DE: weight of the output projection; None leaves it to the caller, who gets (B, M, E).
        cu_seqlens: borders of packed sequences, as in `selective_scan`.

    Raises:
        TypeError, ValueError: tensors that are none, or do not fit.
    """
    check_walks("mamba_inner", walks, x_BMD, in_proj_FD, out_proj_DE)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BMD)
    x_BMD = x_BMD.to(mixed_dtype(x_BMD))
    long_filter = walks[0].filter_EK.shape[1] > MOST_TAPS
    backend = choose_backend(None, x_BMD.device.type, x_BMD.dtype)
    if long_filter or backend not in FUSED:
        return composed(x_BMD, walks, in_proj_FD, out_proj_DE, cu_seqlens)
    weights = [weight for weight in (in_proj_FD, out_proj_DE) if weight is not None]
    parameters, directions = flat(walks)
    tensors = (x_BMD, *weights, *parameters)
    refuse_tangents("mamba_inner", *tensors)
    keep = may_need_backward(tensors)
    return _mamba_inner(x_BMD, parameters, directions, in_proj_FD, out_proj_DE, cu_seqlens, backend, keep)[0]


@torch.library.custom_op("longvision::mamba_inner", mutates_args=())
def _mamba_inner(
    x: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    in_proj: Tensor | None,
    out_proj: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> the output, and what the backend's backward needs: `Kept` (empty unless `keep`)."""
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    with torch.autocast(x.device.type, enabled=False):
        if backend == "cpu" and slabs.pay(x.shape[1], inner, keep):
            return slabs.forward(x, inner, x.dtype, lambda slab: slab, add=False), *cpu.nothing_kept(x.dtype)
        out, kept = FUSED[backend].forward(x, inner, keep)
    return out, *kept


@_mamba_inner.register_fake
def _(x, parameters, reverse, in_proj, out_proj, cu_seqlens, backend, keep):
    inner = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens)
    *shapes, states = FUSED[backend].kept_shapes(x, inner, keep)
    real = torch.promote_types(x.dtype, torch.float32)
    kept = *(x.new_empty(shape) for shape in shapes), x.new_empty(states, dtype=real)
    return x.new_empty(inner.output_shape(x)), *kept


@torch.library.custom_op("longvision::mamba_inner_backward", mutates_args=())
def _mamba_inner_backward(
    grad: Tensor,
    kept: Sequence[Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    reverse: Sequence[bool],
    in_proj: Tensor | None,
    out_proj: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> list[Tensor]:
    """-> gradients of x, of each parameter, and of the projections that there are."""
    inner, module = Inner(unflat(parameters, reverse), in_proj, out_proj, cu_seqlens), FUSED[backend]
    with torch.autocast(x.device.type, enabled=False):
        return module.backward(grad, module.Kept(*kept), x, inner)


@_mamba_inner_backward.register_fake
def _(grad, kept, x, parameters, reverse, in_proj, out_proj, cu_seqlens, backend):
    tensors = [x, *parameters, *(weight for weight in (in_proj, out_proj) if weight is not None)]
    return [tensor.new_empty(tensor.shape) for tensor in tensors]


def _setup_context(ctx, inputs, output) -> None:
    x, parameters, ctx.reverse, in_proj, out_proj, cu_seqlens, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # what is kept gets none: zeros of its size would be made for it
    ctx.save_for_backward(*output[1:], x, in_proj, out_proj, cu_seqlens, *parameters)


def _backward(ctx, grad, *_grads_of_kept):
    saved = ctx.saved_tensors  # asked for once: what a checkpoint computes again, it hands out once
    *kept, x, in_proj, out_proj, cu_seqlens = saved[:7]
    parameters = saved[7:]
    if grad is None:
        return None, [None] * len(parameters), None, None, None, None, None, None
    check_kept("mamba_inner", kept[-1])
    of_the_call = parameters, ctx.reverse, in_proj, out_proj, cu_seqlens, ctx.backend
    grads = iter(_mamba_inner_backward(grad, kept, x, *of_the_call))
    dx, of_parameters = next(grads), [next(grads) for _ in parameters]
    of_projections = [None if weight is None else next(grads) for weight in (in_proj, out_proj)]
    return dx, of_parameters, None, *of_projections, None, None, None


_mamba_inner.register_autograd(_backward, setup_context=_setup_context)
