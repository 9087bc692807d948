"""The cross scan that models call: checks, the choice of a backend, one node for autograd, compile and export."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from longvision.ops.common import (
    check_fits,
    check_saved,
    check_tokens,
    choose_backend,
    may_need_backward,
    refuse_tangents,
)
from longvision.ops.cross_scan import cpu
from longvision.ops.cross_scan.composed import Composed
from longvision.ops.cross_scan.inputs import TENSORS, CrossInputs
from longvision.ops.cross_scan.reference import DIRECTIONS, cross_scan_reference
from longvision.ops.selective_scan import chunked, cuda
from longvision.ops.selective_scan.inputs import check_grid

MODULES: dict[str, Any] = {"cpu": cpu, "triton": Composed(cuda), "chunked": Composed(chunked)}


def cross_scan(
    x_BME: Tensor,
    delta_BMKE: Tensor,
    A_KEN: Tensor,
    B_BMKN: Tensor,
    C_BMKN: Tensor,
    D_KE: Tensor | None,
    delta_bias_KE: Tensor | None,
    grid: tuple[int, int],
    delta_softplus: bool = True,
) -> Tensor:
    """(B, M, E) -> (B, M, E). The tokens of an image scanned in four directions, whose outputs are summed.

    Section 4.3 of arXiv 2401.10166 (VMamba): direction 0 goes row by row, 1 column by column, 2 is 0 from the end and 3
    is 1 from the end. Each is a `selective_scan` with parameters of its own; everything stays in the order of the rows.
    The kernels for a CPU and a GPU walk the columns in place. Computed in float32, or in float64 where x is; the output
    has x's dtype.

    Args:
        x_BME: input, batch x pixels x channels, row by row.
        delta_BMKE: step size of each of K = 4 directions; read without a copy if its channels are contiguous.
        A_KEN: decay rates, N states a channel.
        B_BMKN: how the input enters the state.
        C_BMKN: how the output reads the state.
        D_KE: skip connection; None for none.
        delta_bias_KE: added to delta, in float32; None for none.
        grid: rows and columns of the image, M pixels in all.
        delta_softplus: take softplus of delta (after the bias).

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match.
    """
    inputs = CrossInputs(x_BME, delta_BMKE, A_KEN, B_BMKN, C_BMKN, D_KE, delta_bias_KE, grid, delta_softplus)
    _check(inputs)
    dtype = reduce(torch.promote_types, (t.dtype for t in (x_BME, delta_BMKE, B_BMKN, C_BMKN)))
    backend = choose_backend(None, x_BME.device.type, dtype)
    if backend == "reference":
        return cross_scan_reference(*inputs)
    tensors = [t for t in inputs[:TENSORS] if isinstance(t, Tensor)]
    refuse_tangents("cross_scan", *tensors)
    if backend == "cpu":  # its kernels take one dtype
        inputs = CrossInputs(
            *(x_BME.to(dtype), delta_BMKE.to(dtype), A_KEN, B_BMKN.to(dtype), C_BMKN.to(dtype)), *inputs[5:]
        )
    return _cross_scan(*inputs, backend, may_need_backward(tensors))[0].to(x_BME.dtype)


def _check(inputs: CrossInputs) -> None:
    x, A = inputs.x_BME, inputs.A_KEN
    check_tokens("cross_scan", x)
    batch, tokens, width = x.shape
    if not isinstance(A, Tensor):
        raise TypeError(f"cross_scan got A of type {type(A).__name__}, expected a torch.Tensor of three dimensions")
    if A.ndim != 3 or A.shape[2] == 0:
        raise ValueError(f"cross_scan got A of shape {tuple(A.shape)}, expected (4, {width}, states)")
    states = A.shape[2]
    shapes = {
        "delta": (inputs.delta_BMKE, (batch, tokens, DIRECTIONS, width)),
        "A": (A, (DIRECTIONS, width, states)),
        "B": (inputs.B_BMKN, (batch, tokens, DIRECTIONS, states)),
        "C": (inputs.C_BMKN, (batch, tokens, DIRECTIONS, states)),
        "D": (inputs.D_KE, (DIRECTIONS, width)),
        "delta_bias": (inputs.delta_bias_KE, (DIRECTIONS, width)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None or name not in ("D", "delta_bias"):
            check_fits("cross_scan", name, tensor, shape, x)
    check_grid("cross_scan", inputs.grid, tokens)


ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, SymInt[] grid, "
    "bool delta_softplus, str backend"
)


@torch.library.custom_op(
    "longvision::cross_scan", mutates_args=(), schema=f"({ARGUMENTS}, bool save_for_backward) -> (Tensor, Tensor)"
)
def _cross_scan(*arguments):
    """-> y (B, M, E), and states from which the backward recomputes, in the backend's layout; empty if not saved."""
    *described, backend, save_for_backward = arguments
    inputs = CrossInputs(*described)
    states = _new_states(inputs, backend, save_for_backward)
    return MODULES[backend].forward(inputs, states if save_for_backward else None), states


@_cross_scan.register_fake
def _(x, *arguments):
    *described, backend, save_for_backward = arguments
    return x.new_empty(x.shape), _new_states(CrossInputs(x, *described), backend, save_for_backward)


def _new_states(inputs: CrossInputs, backend: str, save_for_backward: bool) -> Tensor:
    """Float32 or better."""
    shape = MODULES[backend].states_shape(inputs) if save_for_backward else (0,)
    return inputs.x_BME.new_empty(shape, dtype=torch.promote_types(inputs.x_BME.dtype, torch.float32))


@torch.library.custom_op(
    "longvision::cross_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor states, {ARGUMENTS}) -> ({', '.join(['Tensor'] * TENSORS)})",
)
def _cross_scan_backward(grad, states, *arguments):
    """-> gradients of the first TENSORS of `CrossInputs`, as these; an empty tensor stands for an absent one."""
    *described, backend = arguments
    grads = MODULES[backend].backward(grad, states, CrossInputs(*described))
    return tuple(
        states.new_empty(0) if tensor is None else grad.to(tensor.dtype).contiguous()
        for grad, tensor in zip(grads, described)
    )


@_cross_scan_backward.register_fake
def _(grad, states, *arguments):
    return tuple(
        states.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in arguments[:TENSORS]
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.grid, ctx.delta_softplus, ctx.backend, _ = inputs
    ctx.set_materialize_grads(False)  # the states get none
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx, grad, _grad_states):
    none = [None] * 4  # of the options
    if grad is None:
        return *[None] * TENSORS, *none
    states, *tensors = ctx.saved_tensors
    check_saved("cross_scan", states)
    grads = _cross_scan_backward(grad, states, *tensors, ctx.grid, ctx.delta_softplus, ctx.backend)
    return *(None if tensor is None else g for g, tensor in zip(grads, tensors)), *none


_cross_scan.register_autograd(_backward, setup_context=_setup_context)
