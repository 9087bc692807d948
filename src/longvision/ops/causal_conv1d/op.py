"""The convolution that models call: checks, and one node for autograd, compile and export."""

from typing import Any

import torch
from torch import Tensor

from longvision.ops.backends import choose_backend
from longvision.ops.causal_conv1d import chunked, cpu, cuda
from longvision.ops.causal_conv1d.cpu import MOST_TAPS
from longvision.ops.checks import check_fits, check_tokens, columns
from longvision.ops.packing import check_cu_seqlens
from longvision.ops.tangents import refuse_tangents


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
        reverse: look ahead instead of back (the same filter, walked from the last token).
        cu_seqlens: borders of packed sequences, as in `selective_scan`; none looks into its neighbour.

    Raises:
        TypeError, ValueError: tensors that are none, or do not fit.
    """
    check_tokens("causal_conv1d", x_BME)
    width, taps = x_BME.shape[-1], columns("causal_conv1d", "weight", weight_EK)
    check_fits("causal_conv1d", "weight", weight_EK, (width, taps), x_BME)
    if bias_E is not None:
        check_fits("causal_conv1d", "bias", bias_E, (width,), x_BME)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BME)
    refuse_tangents("causal_conv1d", x_BME, weight_EK, bias_E)
    return _causal_conv1d(x_BME, weight_EK, bias_E, silu, reverse, cu_seqlens)


def _backend(x: Tensor, taps: int) -> Any:
    fused = {"cpu": cpu, "triton": cuda}.get(choose_backend(None, x.device.type, x.dtype))
    return chunked if fused is None or taps > MOST_TAPS else fused


@torch.library.custom_op("longvision::causal_conv1d", mutates_args=())
def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool, cu_seqlens: Tensor | None
) -> Tensor:
    backend = _backend(x, weight.shape[1])
    return backend.forward(x, weight, bias, silu, reverse, cu_seqlens)


@_causal_conv1d.register_fake
def _(x, weight, bias, silu, reverse, cu_seqlens):
    return x.new_empty(x.shape)


@torch.library.custom_op("longvision::causal_conv1d_backward", mutates_args=())
def _causal_conv1d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = _backend(x, weight.shape[1])
    return backend.backward(grad, x, weight, bias, silu, reverse, cu_seqlens)


@_causal_conv1d_backward.register_fake
def _(grad, x, weight, bias, silu, reverse, cu_seqlens):
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, ctx.silu, ctx.reverse, cu_seqlens = inputs
    ctx.save_for_backward(x, weight, bias, cu_seqlens)


def _backward(ctx, grad):
    x, weight, bias, cu_seqlens = ctx.saved_tensors
    dx, dweight, dbias = _causal_conv1d_backward(grad.contiguous(), x, weight, bias, ctx.silu, ctx.reverse, cu_seqlens)
    return dx, dweight, None if bias is None else dbias, None, None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup_context)
