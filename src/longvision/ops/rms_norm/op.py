"""The normalisation that models call: the kernels as one node, or plain torch."""

from typing import Any

import torch
from torch import Tensor

from longvision.ops.common import check_fits, choose_backend, refuse_tangents
from longvision.ops.rms_norm import cpu, cuda
from longvision.ops.rms_norm.reference import rms_norm_reference

FUSED: dict[str, Any] = {"cpu": cpu, "triton": cuda}


def rms_norm(x_BMD: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    """(..., D) -> (..., D). x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467).

    Computed in x's precision, float32 or better; the output has the weight's dtype. So a float32 residual goes into
    projections of a lower precision.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match.
    """
    _check(x_BMD, weight_D)
    backend = choose_backend(None, x_BMD.device.type, weight_D.dtype)
    if backend not in FUSED or not FUSED[backend].takes(x_BMD, weight_D.dtype):
        return rms_norm_reference(x_BMD, weight_D, eps)
    refuse_tangents("rms_norm", x_BMD, weight_D)
    return _rms_norm(x_BMD, weight_D, eps, backend)[0]


def _check(x_BMD: Tensor, weight_D: Tensor) -> None:
    if not isinstance(x_BMD, Tensor):
        raise TypeError(f"rms_norm got x of type {type(x_BMD).__name__}, expected a torch.Tensor")
    if x_BMD.ndim == 0 or x_BMD.shape[-1] == 0:
        raise ValueError(f"rms_norm got x of shape {tuple(x_BMD.shape)}, expected (..., channels), at least one")
    check_fits("rms_norm", "x", x_BMD, tuple(x_BMD.shape), x_BMD)
    check_fits("rms_norm", "weight", weight_D, tuple(x_BMD.shape[-1:]), x_BMD)


@torch.library.custom_op("longvision::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return FUSED[backend].forward(x, weight, eps, weight.dtype)


@_rms_norm.register_fake
def _(x, weight, eps, backend):
    inverse_dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=inverse_dtype)


@torch.library.custom_op("longvision::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: Tensor, inverse: Tensor, x: Tensor, weight: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor]:
    return FUSED[backend].backward(grad, inverse, x, weight, eps, weight.dtype)


@_rms_norm_backward.register_fake
def _(grad, inverse, x, weight, eps, backend):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, *ctx.options = inputs
    ctx.set_materialize_grads(False)  # 1 / rms gets none
    ctx.save_for_backward(output[1], x, weight)


def _backward(ctx, grad, _grad_inverse):
    if grad is None:
        return None, None, None, None
    return *_rms_norm_backward(grad, *ctx.saved_tensors, *ctx.options), None, None


_rms_norm.register_autograd(_backward, setup_context=_setup_context)
