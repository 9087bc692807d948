"""mamba_ssm's inner functions: all between a Mamba block's projections, on our ops, and the same on the equations.

[x; z] -> convolution and SiLU of x -> step, B and C -> scan, gated by SiLU(z). Inside, channels are last.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from longvision.compat.checks import check_shape, check_tokens
from longvision.compat.convolution import causal_conv1d_ref
from longvision.compat.scan import selective_scan_ref
from longvision.errors import UserError
from longvision.ops import causal_conv1d, rms_norm, selective_scan


class _Scanned(NamedTuple):
    """What the scan reads. x, delta and z are (B, L, D); B and C (B, L, N), or constant (D, N)."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """(B, 2 D, L) -> (B, L, model width).

    Args:
        xz: x and z, one behind the other along the channels.
        conv1d_weight: (D, 1, W); its bias (D,).
        x_proj_weight: (R + 2 N, D), rows for the low-rank step, B and C; none for what is given as B or C.
        delta_proj_weight: (D, R).
        out_proj_weight: (model width, D); its bias (model width,).
        A: (D, N), real.
        B, C: constant (D, N); None: of each token, by x_proj_weight.
        D, delta_bias: (D,).
        B_proj_bias, C_proj_bias: (N,), added to B and C of each token.
        checkpoint_lvl: taken, and without effect: the backward computes again what is cheap.
        b_rms_weight, c_rms_weight, dt_rms_weight: of an RMS normalisation of B, C (N,) and the step (D,).

    Raises:
        UserError: a complex A, B or C that are not constant, or a shape that does not match.
    """
    norms = b_rms_weight, c_rms_weight, dt_rms_weight
    of_tokens = (B, C), (B_proj_bias, C_proj_bias), norms, b_c_dt_rms_eps
    given = xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scanned = _project("mamba_inner_fn", _convolve, *given, (A,), *of_tokens)
    y_BLD = _scan(scanned, A, D, delta_bias, delta_softplus)
    return F.linear(y_BLD, out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """(B, 2 D, L) -> (B, D, L): `mamba_inner_fn` up to the output projection."""
    of_tokens = (B, C), (B_proj_bias, C_proj_bias)
    given = xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scanned = _project("mamba_inner_fn_no_out_proj", _convolve, *given, (A,), *of_tokens)
    return _scan(scanned, A, D, delta_bias, delta_softplus).mT.contiguous()


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """(B, 2 D, L) -> (B, L, model width): `mamba_inner_fn` with a second scan, from the last token to the first, that
    has the decay rates `A_b` and shares all else; the two are summed."""
    of_tokens = (B, C), (B_proj_bias, C_proj_bias)
    given = xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scanned = _project("bimamba_inner_fn", _convolve, *given, (A, A_b), *of_tokens)
    there = _scan(scanned, A, D, delta_bias, delta_softplus)
    back = _scan(scanned, A_b, D, delta_bias, delta_softplus, reverse=True)
    return F.linear(there + back, out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` in plain torch."""
    of_tokens = (B, C), (B_proj_bias, C_proj_bias)
    given = xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scanned = _project("mamba_inner_ref", _convolve_ref, *given, (A,), *of_tokens)
    y_BLD = _scan_ref(scanned, A, D, delta_bias, delta_softplus)
    return F.linear(y_BLD, out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`bimamba_inner_fn` in plain torch."""
    of_tokens = (B, C), (B_proj_bias, C_proj_bias)
    given = xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight
    scanned = _project("bimamba_inner_ref", _convolve_ref, *given, (A, A_b), *of_tokens)
    there = _scan_ref(scanned, A, D, delta_bias, delta_softplus)
    flipped = _Scanned(*(each if each.ndim == 2 else each.flip(1) for each in scanned))
    back = _scan_ref(flipped, A_b, D, delta_bias, delta_softplus).flip(1)
    return F.linear(there + back, out_proj_weight, out_proj_bias)


def _project(
    function: str,
    convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    rates: Sequence[Tensor],
    constants: tuple[Tensor | None, Tensor | None],
    biases: tuple[Tensor | None, Tensor | None],
    norms: tuple[Tensor | None, ...] = (None, None, None),
    eps: float = 1e-6,
) -> _Scanned:
    """(B, 2 D, L) -> what the scan reads."""
    check_tokens(function, "xz", xz)
    rank, states = delta_proj_weight.shape[1], rates[0].shape[-1]
    _check_states(function, xz.shape[1] // 2, states, rates, constants)
    rows = rank + states * sum(constant is None for constant in constants)
    meaning = "(rank + states of B and C that are not given, channels)"
    check_shape(function, "x_proj_weight", x_proj_weight, (rows, xz.shape[1] // 2), meaning)
    x, z = xz.mT.chunk(2, -1)
    x = convolve(x, conv1d_weight.squeeze(1), conv1d_bias)
    projected = F.linear(x, x_proj_weight)
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    parts = projected[..., rank : rank + states], projected[..., -states:]
    B, C = (
        constant if constant is not None else part if bias is None else part + bias.to(part.dtype)
        for part, constant, bias in zip(parts, constants, biases)
    )
    B, C, delta = (t if w is None else rms_norm(t, w.to(t.dtype), eps) for t, w in zip((B, C, delta), norms))
    return _Scanned(x, delta, B, C, z)


def _check_states(
    function: str, channels: int, states: int, rates: Sequence[Tensor], constants: tuple[Tensor | None, Tensor | None]
) -> None:
    """Raises UserError unless the rates A and A_b, and B and C if given, are real and (D, N)."""
    for name, rate in zip(("A", "A_b"), rates):
        if rate.is_complex():
            raise UserError(f"{function} got a complex {name}, expected a real one")
        check_shape(function, name, rate, (channels, states), "(channels, states)")
    for name, constant in zip("BC", constants):
        if constant is not None:
            check_shape(function, name, constant, (channels, states), "(channels, states), constant")


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return causal_conv1d(x, weight, bias, silu=True)


def _convolve_ref(x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    return causal_conv1d_ref(x.mT, weight, bias, activation="silu").mT  # type: ignore[union-attr]


def _scan(
    inputs: _Scanned, A: Tensor, D: Tensor | None, delta_bias: Tensor | None, softplus: bool, reverse: bool = False
) -> Tensor:
    x, delta, B, C, z = inputs
    return selective_scan(x, delta, A, B, C, D, z, delta_bias, softplus, reverse)


def _scan_ref(inputs: _Scanned, A: Tensor, D: Tensor | None, delta_bias: Tensor | None, softplus: bool) -> Any:
    x, delta, B, C, z = (each if each.ndim == 2 else each.mT for each in inputs)
    return selective_scan_ref(x, delta, A, B, C, D, z, delta_bias, softplus).mT  # type: ignore[union-attr]
