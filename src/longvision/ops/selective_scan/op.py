"""The selective scan that models call: checks, the choice of a backend, one node for autograd, compile and export."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from longvision.ops.common import (
    check_cu_seqlens,
    check_fits,
    check_saved,
    check_tokens,
    choose_backend,
    columns,
    may_need_backward,
    refuse_tangents,
)
from longvision.ops.selective_scan import chunked, cpu, cuda
from longvision.ops.selective_scan.inputs import ScanInputs
from longvision.ops.selective_scan.reference import selective_scan_reference

MODULES: dict[str, Any] = {"cpu": cpu, "triton": cuda, "chunked": chunked}


def selective_scan(
    x_BME: Tensor,
    delta_BME: Tensor,
    A_EN: Tensor,
    B_BMN: Tensor,
    C_BMN: Tensor,
    D_E: Tensor | None = None,
    z_BME: Tensor | None = None,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """(B, M, E) -> (B, M, E). A linear recurrence whose step, input and output depend on the token.

        h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t        h_t in (E, N), h_0 = 0
        y_t = (h_t C_t + D x_t) silu(z_t)

    Section 3.2 of arXiv 2312.00752; in Vision Mamba, Algorithm 1 of arXiv 2401.09417. Computed in float32, or in
    float64 where x is; the output has x's dtype.

    Args:
        x_BME: input, batch x tokens x channels.
        delta_BME: step size, one per token and channel.
        A_EN: decay rates, N states a channel; negative, which is not checked: positive ones grow without bound.
        B_BMN: how the input enters the state, one vector per token.
        C_BMN: how the output reads the state.
        D_E: skip connection; None for none.
        z_BME: gate; None for none.
        delta_bias_E: added to delta, in float32.
        delta_softplus: take softplus of delta (after the bias).
        reverse: scan from the last token to the first.
        cu_seqlens: (S + 1,) integers 0 = c_0 < c_1 < ... < c_S = M, the boundaries of S sequences packed one behind the
            other (batch 1): the state starts from zero in each.
        backend: "cpu" (kernels in C++), "triton" (kernels for an NVIDIA GPU), "chunked" (plain torch, any device) or
            "reference" (the equations, slow); None takes the environment variable LONGVISION_SCAN_BACKEND, and without
            it the fastest one that this machine has for x.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match; a backend that
            does not exist or cannot run here.
    """
    inputs = ScanInputs(
        x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, delta_bias_E, cu_seqlens, delta_softplus, reverse
    )
    _check(inputs)
    dtype = reduce(torch.promote_types, (t.dtype for t in inputs.of_tokens()))
    backend = choose_backend(backend, x_BME.device.type, dtype)
    if backend == "reference":
        return selective_scan_reference(*inputs[:8], delta_softplus, reverse, cu_seqlens)
    tensors = [t for t in inputs[:8] if t is not None]
    refuse_tangents("selective_scan", *tensors)
    save_for_backward = may_need_backward(tensors)
    if backend == "cpu":  # its kernels take one dtype
        x, delta, B, C, *z = (t.to(dtype) for t in inputs.of_tokens())
        inputs = inputs._replace(x_BME=x, delta_BME=delta, B_BMN=B, C_BMN=C, z_BME=z[0] if z else None)
    y_BME, _ = _selective_scan(*inputs, backend, save_for_backward)
    return y_BME.to(x_BME.dtype)


def _check(inputs: ScanInputs) -> None:
    x, delta, A, B, C, D, z, bias, cu_seqlens, *_ = inputs
    check_tokens("selective_scan", x)
    (batch, tokens, width), states = x.shape, columns("selective_scan", "A", A)
    check_fits("selective_scan", "delta", delta, (batch, tokens, width), x)
    check_fits("selective_scan", "A", A, (width, states), x)
    check_fits("selective_scan", "B", B, (batch, tokens, states), x)
    check_fits("selective_scan", "C", C, (batch, tokens, states), x)
    for name, tensor, shape in (("D", D, (width,)), ("z", z, (batch, tokens, width)), ("delta_bias", bias, (width,))):
        if tensor is not None:
            check_fits("selective_scan", name, tensor, shape, x)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x)


ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? cu_seqlens, bool delta_softplus, bool reverse, str backend"
)


@torch.library.custom_op(
    "longvision::selective_scan", mutates_args=(), schema=f"({ARGUMENTS}, bool save_for_backward) -> (Tensor, Tensor)"
)
def _selective_scan(*arguments):
    """-> y (B, M, E), and states from which the backward recomputes, in the backend's layout; empty if not saved."""
    *described, backend, save_for_backward = arguments
    inputs = ScanInputs(*described)
    states = _new_states(inputs, backend, save_for_backward)
    return MODULES[backend].forward(inputs, states if save_for_backward else None), states


@_selective_scan.register_fake
def _(x, *arguments):
    *described, backend, save_for_backward = arguments
    return x.new_empty(x.shape), _new_states(ScanInputs(x, *described), backend, save_for_backward)


def _new_states(inputs: ScanInputs, backend: str, save_for_backward: bool) -> Tensor:
    """Float32 or better."""
    shape = MODULES[backend].states_shape(inputs) if save_for_backward else (0,)
    return inputs.x_BME.new_empty(shape, dtype=torch.promote_types(inputs.x_BME.dtype, torch.float32))


@torch.library.custom_op(
    "longvision::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor states, {ARGUMENTS}) -> ({', '.join(['Tensor'] * 8)})",
)
def _selective_scan_backward(grad, states, *arguments):
    """-> gradients of x, delta, A, B, C, D, z, delta_bias, as these; an empty tensor stands for an absent one."""
    *described, backend = arguments
    grads = MODULES[backend].backward(grad, states, ScanInputs(*described))
    return tuple(
        states.new_empty(0) if tensor is None else grad.to(tensor.dtype).contiguous()
        for grad, tensor in zip(grads, described)
    )


@_selective_scan_backward.register_fake
def _(grad, states, *arguments):
    return tuple(
        states.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in arguments[:8]
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # the states get none
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx, grad, _grad_states):
    if grad is None:
        return (None,) * 13
    states, *tensors = ctx.saved_tensors
    check_saved("selective_scan", states)
    grads = _selective_scan_backward(grad.contiguous(), states, *tensors, ctx.delta_softplus, ctx.reverse, ctx.backend)
    present = [None if tensor is None else g for g, tensor in zip(grads, tensors)]
    return *present, None, None, None, None, None  # for cu_seqlens, delta_softplus, reverse, backend, save_for_backward


_selective_scan.register_autograd(_backward, setup_context=_setup_context)
