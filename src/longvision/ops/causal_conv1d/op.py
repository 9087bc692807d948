"""The convolution that models call: checks, and one node for autograd, compile and export."""

from typing import Any

import torch
from torch import Tensor

from longvision.ops.causal_conv1d import chunked, cpu, cuda
from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.causal_conv1d.inputs import ConvInputs
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from longvision.ops.common import check_cu_seqlens, check_fits, check_tokens, choose_backend, columns, refuse_tangents

FUSED = {"cpu": cpu, "triton": cuda}


def causal_conv1d(
    x_BME: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None = None,
    silu: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """(B, M, E) -> (B, M, E). Depthwise convolution over the tokens that looks back only, by K - 1 tokens.

    Algorithm 1 of arXiv 2401.09417, line 8. The output has x's dtype; sums are taken in float32 or better.

    Args:
        x_BME: input, batch x tokens x channels.
        weight_EK: one filter of K taps a channel; the last tap is the token itself.
        bias_E: added before the activation.
        silu: apply SiLU.
        reverse: look ahead instead of back (the same filter, from the last token to the first).
        cu_seqlens: boundaries of packed sequences, as in `selective_scan`; none looks into its neighbour.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match.
    """
    check_tokens("causal_conv1d", x_BME)
    width, taps = x_BME.shape[-1], columns("causal_conv1d", "weight", weight_EK)
    check_fits("causal_conv1d", "weight", weight_EK, (width, taps), x_BME)
    if bias_E is not None:
        check_fits("causal_conv1d", "bias", bias_E, (width,), x_BME)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BME)
    backend = choose_backend(None, x_BME.device.type, x_BME.dtype)
    if backend == "reference":
        return causal_conv1d_reference(x_BME, weight_EK, bias_E, silu, reverse, cu_seqlens)
    refuse_tangents("causal_conv1d", x_BME, weight_EK, bias_E)
    return _causal_conv1d(x_BME, weight_EK, bias_E, cu_seqlens, silu, reverse, backend)


def _module(backend: str, inputs: ConvInputs) -> Any:
    return chunked if inputs.weight_EK.shape[1] > MOST_TAPS else FUSED.get(backend, chunked)


ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? cu_seqlens, bool silu, bool reverse, str backend"


@torch.library.custom_op("longvision::causal_conv1d", mutates_args=(), schema=f"({ARGUMENTS}) -> Tensor")
def _causal_conv1d(*arguments):
    *described, backend = arguments
    inputs = ConvInputs(*described)
    return _module(backend, inputs).forward(inputs)


@_causal_conv1d.register_fake
def _(x, *arguments):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "longvision::causal_conv1d_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _causal_conv1d_backward(grad, *arguments):
    """-> gradients of x, weight, bias (empty without one), each in its tensor's dtype."""
    *described, backend = arguments
    inputs = ConvInputs(*described)
    dx, dweight, dbias = _module(backend, inputs).backward(grad, inputs)
    bias = inputs.bias_E
    return dx, dweight.to(inputs.weight_EK.dtype), dx.new_empty(0) if bias is None else dbias.to(bias.dtype)


@_causal_conv1d_backward.register_fake
def _(grad, x, weight, bias, *_):
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.silu, ctx.reverse, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    tensors = ctx.saved_tensors
    dx, dweight, dbias = _causal_conv1d_backward(grad.contiguous(), *tensors, ctx.silu, ctx.reverse, ctx.backend)
    return dx, dweight, None if tensors[2] is None else dbias, None, None, None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup_context)
