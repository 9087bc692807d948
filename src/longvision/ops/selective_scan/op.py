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
from longvision.ops.selective_scan.inputs import TENSORS, ScanInputs, check_grid
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
    initial_state_BEN: Tensor | None = None,
    return_last_state: bool = False,
    grid: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Any:
    """(B, M, E) -> (B, M, E). A linear recurrence whose step, input and output depend on the token.

        h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t        h_t in (E, N), h_0 = 0
        y_t = (h_t C_t + D x_t) silu(z_t)

    Section 3.2 of arXiv 2312.00752; in Vision Mamba, Algorithm 1 of arXiv 2401.09417. Computed in float32, or in
    float64 where x is; the output has x's dtype.

    Channels come last, but may lie anyhow in memory. Unless there is a grid, the kernels for a CPU read an x, delta or
    z with contiguous tokens, a (B, E, M) transposed, as it lies, without a copy; its gradient then lies so too, and y
    as x does.

    Args:
        x_BME: input, batch x tokens x channels.
        delta_BME: step size, one per token and channel.
        A_EN: decay rates, N states a channel; negative, which is not checked: positive ones grow without bound.
        B_BMN: how the input enters the state, one vector per token; or in groups, (B, M, G, N), channel e having group
            floor(e / (E / G)); or constant, (E, N), one vector per channel.
        C_BMN: how the output reads the state; shaped in one of these ways, not always that of B.
        D_E: skip connection; None for none.
        z_BME: gate; None for none.
        delta_bias_E: added to delta, in float32.
        delta_softplus: take softplus of delta (after the bias).
        reverse: scan from the last token to the first.
        cu_seqlens: (S + 1,) integers 0 = c_0 < c_1 < ... < c_S = M, the boundaries of S sequences packed one behind the
            other (batch 1): the state starts from zero in each.
        initial_state_BEN: the state before the first token of the scan, which with `reverse` is the last one of x; None
            for zero. Not with `cu_seqlens`.
        return_last_state: return (y, the state behind the last token of the scan), the state (B, E, N) in float32 or
            better. Both have gradients. Not with `cu_seqlens`.
        grid: (rows, columns): the tokens are pixels, row by row, and are scanned column by column (with `reverse` from
            the end of the last column on); everything stays in the order of the rows. Not with `cu_seqlens`.
        backend: "cpu" (kernels in C++), "triton" (kernels for an NVIDIA GPU), "chunked" (plain torch, any device) or
            "reference" (the equations, slow); None takes the environment variable LONGVISION_SCAN_BACKEND, and without
            it the fastest one that this machine has for x. Constant B or C are for plain torch, whatever is chosen.

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match; a backend that
            does not exist or cannot run here.
    """
    inputs = ScanInputs(
        *(x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, delta_bias_E, initial_state_BEN),
        *(cu_seqlens, delta_softplus, reverse, grid),
    )
    _check(inputs, return_last_state)
    dtype = reduce(torch.promote_types, (t.dtype for t in inputs.of_tokens().values()))
    backend = choose_backend(backend, x_BME.device.type, dtype)
    if backend == "reference":
        options = delta_softplus, reverse, cu_seqlens, initial_state_BEN, return_last_state, grid
        return selective_scan_reference(*inputs[:8], *options)
    tensors = [t for t in inputs[:TENSORS] if isinstance(t, Tensor)]
    refuse_tangents("selective_scan", *tensors)
    save_for_backward = may_need_backward(tensors)
    if backend == "cpu":  # its kernels take one dtype
        inputs = inputs.with_tokens(lambda t: t.to(dtype))
    B, C = (t.squeeze(2) if t.ndim == 4 and t.shape[2] == 1 else t for t in (inputs.B_BMN, inputs.C_BMN))
    if grid is not None and 1 in grid:  # one row or one column: tokens are taken as they lie
        grid = None
    inputs = inputs._replace(B_BMN=B, C_BMN=C, grid=grid)
    y_BME, last_BEN, _ = _selective_scan(*inputs, backend, return_last_state, save_for_backward)
    y_BME = y_BME.to(x_BME.dtype)
    return (y_BME, last_BEN) if return_last_state else y_BME


def _check(inputs: ScanInputs, return_last_state: bool) -> None:
    x, delta, A, B, C, D, z, bias, initial, cu_seqlens, *_ = inputs
    check_tokens("selective_scan", x)
    (batch, tokens, width), states = x.shape, columns("selective_scan", "A", A)
    check_fits("selective_scan", "delta", delta, (batch, tokens, width), x)
    check_fits("selective_scan", "A", A, (width, states), x)
    _check_B_or_C("B", B, states, x)
    _check_B_or_C("C", C, states, x)
    optional = ("D", D, (width,)), ("z", z, (batch, tokens, width)), ("delta_bias", bias, (width,))
    for name, tensor, shape in (*optional, ("initial_state", initial, (batch, width, states))):
        if tensor is not None:
            check_fits("selective_scan", name, tensor, shape, x)
    if inputs.grid is not None:
        check_grid("selective_scan", inputs.grid, tokens)
    if cu_seqlens is None:
        return
    asked = {"initial_state": initial is not None, "return_last_state": return_last_state, "grid": inputs.grid}
    for name, is_asked in asked.items():
        if is_asked:
            raise ValueError(f"selective_scan got cu_seqlens and {name}: scan the packed sequences one by one for that")
    check_cu_seqlens(cu_seqlens, x)


def _check_B_or_C(name: str, given: Tensor, states: int, x: Tensor) -> None:
    (batch, tokens, width), ndim = x.shape, getattr(given, "ndim", 3)
    if ndim == 4:
        groups = given.shape[2]
        if groups == 0 or width % groups:
            raise ValueError(
                f"selective_scan got {name} of shape {tuple(given.shape)}: its {groups} groups do not divide the "
                f"{width} channels of x"
            )
        check_fits("selective_scan", name, given, (batch, tokens, groups, states), x)
    else:
        check_fits("selective_scan", name, given, (width, states) if ndim == 2 else (batch, tokens, states), x)


def _module(backend: str, inputs: ScanInputs) -> Any:
    # The kernels read B and C as numbers that all channels of a vector share. No vision model has constant ones.
    return chunked if 2 in (inputs.B_BMN.ndim, inputs.C_BMN.ndim) else MODULES[backend]


ARGUMENTS = (
    "Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? cu_seqlens, bool delta_softplus, bool reverse, SymInt[]? grid, str backend"
)


@torch.library.custom_op(
    "longvision::selective_scan",
    mutates_args=(),
    schema=f"({ARGUMENTS}, bool return_last_state, bool save_for_backward) -> (Tensor, Tensor, Tensor)",
)
def _selective_scan(*arguments):
    """-> y (B, M, E), the last state (B, E, N), and states from which the backward recomputes, in the backend's layout;
    the last two are empty if they are not asked for."""
    *described, backend, return_last_state, save_for_backward = arguments
    inputs = ScanInputs(*described)
    module = _module(backend, inputs)
    last, states = _new_states(inputs, module, return_last_state, save_for_backward)
    wanted = states if save_for_backward else None, last if return_last_state else None
    return module.forward(inputs, *wanted), last, states


@_selective_scan.register_fake
def _(*arguments):
    *described, backend, return_last_state, save_for_backward = arguments
    inputs = ScanInputs(*described)
    module = _module(backend, inputs)
    return _new("x_BME", inputs, module), *_new_states(inputs, module, return_last_state, save_for_backward)


def _keeps_layout(name: str, inputs: ScanInputs, module: Any) -> bool:
    """Whether a gradient (of x: y too) has contiguous tokens, as the tensor has; else it is contiguous."""
    kept = module is cpu and name in ("x_BME", "delta_BME", "z_BME")
    return kept and cpu.keeps_layout(getattr(inputs, name), inputs)


def _new(name: str, inputs: ScanInputs, module: Any) -> Tensor:
    tensor = getattr(inputs, name)
    if not _keeps_layout(name, inputs, module):
        return tensor.new_empty(tensor.shape)
    batch, tokens, width = tensor.shape
    return tensor.new_empty(batch, width, tokens).transpose(1, 2)


def _new_states(inputs: ScanInputs, module: Any, last: bool, save_for_backward: bool) -> tuple[Tensor, Tensor]:
    """Float32 or better."""
    x, dtype = inputs.x_BME, torch.promote_types(inputs.x_BME.dtype, torch.float32)
    states = module.states_shape(inputs) if save_for_backward else (0,)
    of_last = (x.shape[0], *inputs.A_EN.shape) if last else (0,)
    return x.new_empty(of_last, dtype=dtype), x.new_empty(states, dtype=dtype)


@torch.library.custom_op(
    "longvision::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor? grad_last, Tensor states, {ARGUMENTS}) -> ({', '.join(['Tensor'] * TENSORS)})",
)
def _selective_scan_backward(grad, grad_last, states, *arguments):
    """-> gradients of the first TENSORS of `ScanInputs`, as these; an empty tensor stands for an absent one."""
    *described, backend = arguments
    inputs = ScanInputs(*described)
    module = _module(backend, inputs)
    given = []
    for name, found, tensor in zip(ScanInputs._fields, module.backward(grad, grad_last, states, inputs), described):
        if tensor is None:
            given.append(states.new_empty(0))
        else:
            found = found.to(tensor.dtype)
            given.append(found if _keeps_layout(name, inputs, module) else found.contiguous())
    return tuple(given)


@_selective_scan_backward.register_fake
def _(grad, grad_last, states, *arguments):
    *described, backend = arguments
    inputs = ScanInputs(*described)
    module = _module(backend, inputs)
    return tuple(
        states.new_empty(0) if tensor is None else _new(name, inputs, module)
        for name, tensor in zip(ScanInputs._fields, described[:TENSORS])
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.grid, ctx.backend, ctx.has_last, _ = inputs
    ctx.set_materialize_grads(False)  # the states get none
    ctx.save_for_backward(output[2], *tensors)


def _backward(ctx, grad, grad_last, _grad_states):
    states, *tensors = ctx.saved_tensors
    none = [None] * 7  # of cu_seqlens and the options
    grad_last = grad_last if ctx.has_last else None  # a compiled graph has zeros for what was not asked for, too
    if grad is None and grad_last is None:
        return *[None] * TENSORS, *none
    check_saved("selective_scan", states)
    grad = tensors[0].new_zeros(tensors[0].shape) if grad is None else grad
    options = ctx.delta_softplus, ctx.reverse, ctx.grid, ctx.backend
    grads = _selective_scan_backward(grad, grad_last, states, *tensors, *options)
    return *(None if tensor is None else g for g, tensor in zip(grads, tensors[:TENSORS])), *none


_selective_scan.register_autograd(_backward, setup_context=_setup_context)
