"""The normalisation that models call: the kernels as one node, or plain torch."""

import torch
from torch import Tensor

from longvision.ops.rms_norm import cpu
from longvision.ops.rms_norm.reference import rms_norm_reference
from longvision.ops.tangents import refuse_tangents


def rms_norm(x_BMD: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    """(..., D) -> (..., D). x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    Computed in x's precision, float32 or better; the output has the weight's dtype. So a float32 residual goes into
    projections of a lower precision.

    Raises:
        ValueError: shapes that do not fit.
    """
    if weight_D.ndim != 1 or x_BMD.shape[-1:] != weight_D.shape:
        raise ValueError(
            f"rms_norm got x of shape {tuple(x_BMD.shape)} and weight of shape {tuple(weight_D.shape)}, "
            "expected (..., channels) and (channels,)"
        )
    if cpu.available(x_BMD.device.type, x_BMD.dtype, weight_D.dtype):
        refuse_tangents("rms_norm", x_BMD, weight_D)
        return _rms_norm(x_BMD, weight_D, eps)[0]
    return rms_norm_reference(x_BMD, weight_D, eps)


@torch.library.custom_op("longvision::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return cpu.forward(x, weight, eps, weight.dtype)


@_rms_norm.register_fake
def _(x, weight, eps):
    return weight.new_empty(x.shape), x.new_empty(x.shape[:-1])


@torch.library.custom_op("longvision::rms_norm_backward", mutates_args=())
def _rms_norm_backward(grad: Tensor, inverse: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return cpu.backward(grad, inverse, x, weight, eps, weight.dtype)


@_rms_norm_backward.register_fake
def _(grad, inverse, x, weight, eps):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, ctx.eps = inputs
    ctx.set_materialize_grads(False)  # 1 / rms gets none
    ctx.save_for_backward(output[1], x, weight)


def _backward(ctx, grad, _grad_inverse):
    if grad is None:
        return None, None, None
    return *_rms_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)
