"""The selective scan that models call: checks, the choice of a backend, one node for autograd, compile and export."""

import os

import torch
from torch import Tensor

from longvision.ops.packing import check_cu_seqlens
from longvision.ops.selective_scan import chunked
from longvision.ops.selective_scan.chunked import ScanInputs
from longvision.ops.selective_scan.reference import selective_scan_reference

BACKENDS = ("chunked", "reference")
BACKEND_VARIABLE = "LONGVISION_SCAN_BACKEND"


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
        A_EN: decay rates, negative; N states a channel.
        B_BMN: how the input enters the state, one vector per token.
        C_BMN: how the output reads the state.
        D_E: skip connection; None for none.
        z_BME: gate; None for none.
        delta_bias_E: added to delta, in float32.
        delta_softplus: take softplus of delta (after the bias).
        reverse: walk from the last token to the first.
        cu_seqlens: (S + 1,) integers 0 = c_0 < c_1 < ... < c_S = M, the borders of S sequences packed one behind the
            other (batch 1): the state starts from zero in each.
        backend: "chunked" or "reference"; None takes the environment variable LONGVISION_SCAN_BACKEND, and without
            it the fastest one for x's device.

    Raises:
        ValueError: shapes that do not fit, or a backend that does not exist.
    """
    _check_shapes(x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, delta_bias_E)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x_BME)
    if _choose_backend(backend) == "reference":
        return selective_scan_reference(
            x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, delta_bias_E, delta_softplus, reverse, cu_seqlens
        )
    y_BME, _ = _selective_scan(
        x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, delta_bias_E, cu_seqlens, delta_softplus, reverse
    )
    return y_BME


def _choose_backend(asked: str | None) -> str:
    name = asked or os.environ.get(BACKEND_VARIABLE) or "chunked"
    if name not in BACKENDS:
        origin = "backend" if asked else BACKEND_VARIABLE
        raise ValueError(f"{origin}={name!r} is not a selective-scan backend: choose one of {', '.join(BACKENDS)}")
    return name


def _check_shapes(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None
) -> None:
    if x.ndim != 3 or A.ndim != 2:
        raise ValueError(
            f"selective_scan got x of shape {tuple(x.shape)} and A of shape {tuple(A.shape)}, "
            "expected (batch, tokens, channels) and (channels, states): channels come last, do not transpose"
        )
    batch, tokens, width = x.shape
    states = A.shape[1]
    if tokens == 0:
        raise ValueError("selective_scan got no tokens: x needs at least one")
    expected = {
        "delta": (delta, (batch, tokens, width)),
        "A": (A, (width, states)),
        "B": (B, (batch, tokens, states)),
        "C": (C, (batch, tokens, states)),
        "D": (D, (width,)),
        "z": (z, (batch, tokens, width)),
        "delta_bias": (bias, (width,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(
                f"selective_scan got {name} of shape {tuple(tensor.shape)}, expected {shape}, "
                f"since x is {tuple(x.shape)} and A has {states} states a channel"
            )


@torch.library.custom_op("longvision::selective_scan", mutates_args=())
def _selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """-> y (B, M, E), and the state before each chunk (B, chunks, E, N) from which the backward recomputes."""
    return chunked.forward(ScanInputs(x, delta, A, B, C, D, z, delta_bias, cu_seqlens, delta_softplus, reverse))


@_selective_scan.register_fake
def _(x, delta, A, B, C, D, z, delta_bias, cu_seqlens, delta_softplus, reverse):
    batch, tokens, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    states = A.new_empty(batch, chunked.num_chunks(tokens), width, A.shape[1], dtype=dtype)
    return x.new_empty(x.shape), states


@torch.library.custom_op("longvision::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    grad: Tensor,
    states: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias; an empty tensor stands for an absent one."""
    inputs = ScanInputs(x, delta, A, B, C, D, z, delta_bias, cu_seqlens, delta_softplus, reverse)
    return chunked.backward(grad, states, inputs)  # type: ignore[return-value]


@_selective_scan_backward.register_fake
def _(grad, states, x, delta, A, B, C, D, z, delta_bias, cu_seqlens, delta_softplus, reverse):
    return tuple(
        states.new_empty(0) if tensor is None else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (x, delta, A, B, C, D, z, delta_bias)
    )


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse = inputs
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx, grad, _grad_states):
    states, *tensors = ctx.saved_tensors
    grads = _selective_scan_backward(grad.contiguous(), states, *tensors, ctx.delta_softplus, ctx.reverse)
    present = [None if tensor is None else g for g, tensor in zip(grads, tensors[:8])]
    return *present, None, None, None  # none for cu_seqlens, delta_softplus, reverse


_selective_scan.register_autograd(_backward, setup_context=_setup_context)
