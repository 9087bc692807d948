"""mamba_ssm's inner functions: all between a Mamba block's projections, on our ops, and the same on the equations.

[x; z] -> convolution and SiLU of x -> step, B and C -> scan, gated by SiLU(z). Inside, channels are last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

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
        UserError: a complex A.
    """
    norms = b_rms_weight, c_rms_weight, dt_rms_weight
    of_tokens = (B, C), (B_proj_bias, C_proj_bias), norms, b_c_dt_rms_eps
    scanned = _project(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, _convolve, *of_tokens)
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
    scanned = _project(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, _convolve, *of_tokens)
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
    scanned = _project(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, _convolve, *of_tokens)
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
    scanned = _project(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, _convolve_ref, *of_tokens)
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
    scanned = _project(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, _convolve_ref, *of_tokens)
    there = _scan_ref(scanned, A, D, delta_bias, delta_softplus)
    flipped = _Scanned(*(each if each.ndim == 2 else each.flip(1) for each in scanned))
    back = _scan_ref(flipped, A_b, D, delta_bias, delta_softplus).flip(1)
    return F.linear(there + back, out_proj_weight, out_proj_bias)


def _project(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    constants: tuple[Tensor | None, Tensor | None],
    biases: tuple[Tensor | None, Tensor | None],
    norms: tuple[Tensor | None, ...] = (None, None, None),
    eps: float = 1e-6,
) -> _Scanned:
    """(B, 2 D, L) -> what the scan reads."""
    if A.is_complex():
        raise UserError("mamba_inner_fn got a complex A, expected a real one")
    x, z = xz.mT.chunk(2, -1)
    x = convolve(x, conv1d_weight.squeeze(1), conv1d_bias)
    projected, rank, states = F.linear(x, x_proj_weight), delta_proj_weight.shape[1], A.shape[1]
    delta = F.linear(projected[..., :rank], delta_proj_weight)
    parts = projected[..., rank : rank + states], projected[..., -states:]
    B, C = (
        constant if constant is not None else part if bias is None else part + bias.to(part.dtype)
        for part, constant, bias in zip(parts, constants, biases)
    )
    B, C, delta = (t if w is None else rms_norm(t, w.to(t.dtype), eps) for t, w in zip((B, C, delta), norms))
    return _Scanned(x, delta, B, C, z)


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
