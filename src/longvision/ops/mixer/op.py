"""The mixer that models call: one fused node where there are kernels, else the ops that it is made of."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.causal_conv1d.op import causal_conv1d
from longvision.ops.common import (
    are_plain,
    autocast_dtype,
    check_cu_seqlens,
    check_saved,
    choose_backend,
    is_unseen,
    may_need_backward,
    refuse_tangents,
)
from longvision.ops.mixer import cpu, cuda
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection, check_mixer
from longvision.ops.mixer.reference import mixer_reference
from longvision.ops.rms_norm.op import rms_norm
from longvision.ops.selective_scan.op import selective_scan

FUSED: dict[str, Any] = {"cpu": cpu, "triton": cuda}  # the backends that have kernels for the whole mixer


def mixer(
    x_BMD: Tensor,
    directions: Sequence[ScanDirection],
    in_proj_FD: Tensor,
    out_proj_DE: Tensor,
    norm_weight_D: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    residual: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """(B, M, D) -> (B, M, D). Lines 4-20 of Algorithm 1 of arXiv 2401.09417; with norm and residual, lines 2-21.

    The input projection gives x and z. In each direction: depthwise convolution of x, SiLU, projections to step, B and
    C, selective scan. The mean of the directions is gated by SiLU(z) and projected.

    Stored between the steps in x's dtype (with a norm: its weight's) or that of autocast; the scan is computed in
    float32 or better. The output has that dtype, or with `residual` x's: hand in float32 to keep a residual in float32.

    Args:
        x_BMD: tokens.
        directions: one or two, with their parameters; see `ScanDirection`.
        in_proj_FD: weight of the input projection, F = 2 E.
        out_proj_DE: weight of the output projection.
        norm_weight_D: of an RMS normalisation before it all; None for none.
        cu_seqlens: boundaries of packed sequences, as in `selective_scan`.
        residual: add x to the output.
        eps: of the normalisation, added to the mean square.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match.
    """
    directions = [direction.with_filter_EK() for direction in directions]
    check_mixer(x_BMD, directions, in_proj_FD, out_proj_DE, norm_weight_D, residual)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BMD)
    dtype = autocast_dtype(x_BMD if norm_weight_D is None else norm_weight_D)
    inputs = MixerInputs(x_BMD, directions, in_proj_FD, out_proj_DE, norm_weight_D, cu_seqlens, residual, eps, dtype)
    backend = choose_backend(None, x_BMD.device.type, dtype)
    if backend == "reference":
        return mixer_reference(inputs)
    if norm_weight_D is None and not residual:
        inputs = inputs._replace(x_BMD=x_BMD.to(dtype))
    elif backend not in FUSED or x_BMD.dtype != torch.promote_types(dtype, torch.float32):
        # Around the mixer the kernels take a residual of the precision that they compute in.
        normed_BMD = x_BMD if norm_weight_D is None else rms_norm(x_BMD, norm_weight_D, eps)
        out_BMD = mixer(normed_BMD, directions, in_proj_FD, out_proj_DE, None, cu_seqlens)
        return x_BMD + out_BMD.to(x_BMD.dtype) if residual else out_BMD
    if backend not in FUSED or directions[0].filter_EK.shape[1] > MOST_TAPS:
        return mixer_reference(inputs, causal_conv1d, selective_scan)
    tensors = inputs.tensors()
    refuse_tangents("mixer", *tensors)
    if backend == "cpu" and is_unseen() and are_plain(tensors):
        return computed(inputs, tensors)
    return _mixer(*inputs.for_the_op(), backend, may_need_backward(tensors))[0]


ARGUMENTS = (
    "Tensor x, Tensor[] parameters, bool[] reverse, Tensor in_proj, Tensor out_proj, Tensor? norm_weight, "
    "Tensor? cu_seqlens, bool residual, float eps, ScalarType dtype, str backend"
)


@torch.library.custom_op(
    "longvision::mixer",
    mutates_args=(),
    schema=f"({ARGUMENTS}, bool save_for_backward) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _mixer(*arguments):
    """-> the output, and what the backend's backward needs: its `Saved` (empty unless `save_for_backward`)."""
    *described, backend, save_for_backward = arguments
    inputs = MixerInputs.of_the_op(*described)
    with torch.autocast(inputs.x_BMD.device.type, enabled=False):
        out, saved = FUSED[backend].forward(inputs, save_for_backward)
    return out, *saved


@_mixer.register_fake
def _(*arguments):
    *described, backend, save_for_backward = arguments
    inputs = MixerInputs.of_the_op(*described)
    x, dtype = inputs.x_BMD, inputs.dtype
    *shapes, states = FUSED[backend].saved_shapes(inputs, save_for_backward)
    saved = [x.new_empty(shape, dtype=dtype) for shape in shapes]
    saved.append(x.new_empty(states, dtype=torch.promote_types(dtype, torch.float32)))
    return x.new_empty(inputs.output_shape(), dtype=inputs.output_dtype()), *saved


@torch.library.custom_op(
    "longvision::mixer_backward", mutates_args=(), schema=f"(Tensor grad, Tensor[] saved, {ARGUMENTS}) -> Tensor[]"
)
def _mixer_backward(grad, saved, *arguments):
    """-> gradients of x, of each parameter, of in_proj and out_proj, and of norm_weight if there is one."""
    *described, backend = arguments
    inputs, module = MixerInputs.of_the_op(*described), FUSED[backend]
    with torch.autocast(grad.device.type, enabled=False):
        return module.backward(grad, module.Saved(*saved), inputs)


@_mixer_backward.register_fake
def _(grad, saved, *arguments):
    return [tensor.new_empty(tensor.shape) for tensor in MixerInputs.of_the_op(*arguments[:-1]).tensors()]


def _setup_context(ctx, inputs, output) -> None:
    x, parameters, ctx.reverse, in_proj, out_proj, norm_weight, cu_seqlens, *ctx.options, _ = inputs
    ctx.set_materialize_grads(False)  # what is saved gets none: zeros of its size would be made for it
    ctx.save_for_backward(*output[1:], x, in_proj, out_proj, norm_weight, cu_seqlens, *parameters)


def _backward(ctx, grad, *_grads_of_saved):
    *saved, x, in_proj, out_proj, norm_weight, cu_seqlens = (tensors := ctx.saved_tensors)[:8]
    parameters = tensors[8:]
    none = [None] * 6  # of cu_seqlens and the options
    if grad is None:
        return None, [None] * len(parameters), None, None, None, None, *none
    check_saved("mixer", saved[-1])
    arguments = x, parameters, ctx.reverse, in_proj, out_proj, norm_weight, cu_seqlens, *ctx.options
    dx, *grads = _mixer_backward(grad, saved, *arguments)
    dparameters, rest = grads[: len(parameters)], grads[len(parameters) :]
    return dx, dparameters, None, *rest, *[None] * (3 - len(rest)), *none


_mixer.register_autograd(_backward, setup_context=_setup_context)


def computed(inputs: MixerInputs, tensors: list[Tensor], parameters: cpu.Parameters | None = None) -> Tensor:
    """Past the dispatcher, which for a small image takes a third of a block's time."""
    if may_need_backward(tensors):
        return _Eager.apply(inputs, parameters, *tensors)
    return cpu.forward(inputs, False, parameters)[0]


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, parameters, *tensors):
        out, saved = cpu.forward(inputs, True, parameters)
        ctx.save_for_backward(*tensors, *saved)
        ctx.rest = inputs.without_tensors()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *tensors, xz, projections, states = ctx.saved_tensors
        inputs = ctx.rest.with_tensors(tensors)
        return None, None, *cpu.backward(grad, cpu.Saved(xz, projections, states), inputs)
