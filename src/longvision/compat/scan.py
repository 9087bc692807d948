"""mamba_ssm's selective scan: its arguments, layout and dtypes on our op, its one step, and the equations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.compat.checks import check_shape, check_tokens
from longvision.errors import UserError
from longvision.ops import selective_scan
from longvision.ops.selective_scan.reference import step_size


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """(B, D, L) -> (B, D, L), contiguous, in u's dtype; with `return_last_state` also the state (B, D, N) in float32.

    Computed in float32, as there; all in float64 where u is. The last state has a gradient here; there it has none.

    Args:
        u: input, batch x channels x tokens.
        delta: step size, as u.
        A: decay rates (D, N), real.
        B, C: each constant (D, N), per token (B, N, L), or per token in groups (B, G, N, L): channel d reads group
            d // (D / G).
        D: skip connection (D,).
        z: gate, as u.
        delta_bias: (D,), added to delta in float32.
        delta_softplus: take softplus of delta, after the bias.

    Raises:
        UserError: a complex A, groups that do not divide the channels, or a shape that does not match.
    """
    if isinstance(A, Tensor) and A.is_complex():
        raise UserError(
            "selective_scan_fn got a complex A, expected a real one: selective_scan_ref takes it, in plain torch"
        )
    _check("selective_scan_fn", u, delta, A, B, C, D, z, delta_bias)
    gate = None if z is None else z.mT
    inputs = u.mT, delta.mT, A, _tokens_first(B), _tokens_first(C), D, gate, delta_bias, delta_softplus
    if not return_last_state:
        return selective_scan(*inputs).mT.contiguous()
    y_BLD, last_BDN = selective_scan(*inputs, return_last_state=True)
    return y_BLD.mT.contiguous(), last_BDN


def _tokens_first(B: Tensor) -> Tensor:
    """B or C as the op reads it: (B, N, L) -> (B, L, N), (B, G, N, L) -> (B, L, G, N), a constant as it is."""
    return B if B.ndim == 2 else B.movedim(-1, 1)


def _check(
    function: str,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    check_tokens(function, "u", u)
    batch, channels, tokens = u.shape
    check_shape(function, "delta", delta, tuple(u.shape), "that of u")
    for name, given, shape, meaning in (
        ("z", z, tuple(u.shape), "that of u"),
        ("D", D, (channels,), "(channels,)"),
        ("delta_bias", delta_bias, (channels,), "(channels,)"),
    ):
        if given is not None:
            check_shape(function, name, given, shape, meaning)
    states = A.shape[-1] if isinstance(A, Tensor) and A.ndim else 0
    check_shape(function, "A", A, (channels, states), "(channels, states)")
    for name, each in (("B", B), ("C", C)):
        dims, groups = getattr(each, "ndim", 0), each.shape[1] if getattr(each, "ndim", 0) == 4 else 1
        if groups == 0 or channels % groups:
            raise UserError(
                f"{function} got {name} in {groups} groups for {channels} channels: they do not divide evenly"
            )
        expected, meaning = {
            2: ((channels, states), "(channels, states)"),
            4: ((batch, groups, states, tokens), "(batch, groups, states, tokens)"),
        }.get(dims, ((batch, states, tokens), "(batch, states, tokens)"))
        check_shape(function, name, each, expected, meaning)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` in plain torch, a token after the other: slow, and differentiated by autograd.

    A may be complex too: B and C are complex then where constant, and hold real and imaginary parts in turn along the
    tokens, (B, N, 2 L), where not; the output is twice the real part.

    Raises:
        UserError: A is real, and a shape does not match.
    """
    if not (isinstance(A, Tensor) and A.is_complex()):
        _check("selective_scan_ref", u, delta, A, B, C, D, z, delta_bias)
    dtype = torch.promote_types(u.dtype, torch.float32)
    x, wide_A = u.to(dtype), A if A.is_complex() else A.to(dtype)
    step = step_size(delta.mT, delta_bias, delta_softplus, dtype).mT
    B_BDNL, C_BDNL = (_of_each_channel(each, wide_A, u.shape[2]) for each in (B, C))
    state, ys = wide_A.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[2]):
        now = step[:, :, t, None]
        state = torch.exp(now * wide_A) * state + now * x[:, :, t, None] * B_BDNL[..., t]
        ys.append((state * C_BDNL[..., t]).sum(-1))
    y = torch.stack(ys, -1)
    y = 2 * y.real if y.is_complex() else y
    y = y if D is None else y + D.to(dtype)[:, None] * x
    y = (y if z is None else y * F.silu(z.to(dtype))).to(u.dtype)
    return (y, state) if return_last_state else y


def _of_each_channel(B: Tensor, A: Tensor, tokens: int) -> Tensor:
    """B or C -> (B or 1, D or 1, N, L), complex if A is."""
    if B.ndim == 2:
        return B.to(A.dtype)[None, :, :, None].expand(-1, -1, -1, tokens)
    B = torch.view_as_complex(B.float().unflatten(-1, (tokens, 2))) if A.is_complex() else B.to(A.dtype)
    return B[:, None] if B.ndim == 3 else B.repeat_interleave(len(A) // B.shape[1], 1)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """(B, D) -> (B, D): the scan's next token; writes `state`, (B, D, N), in place. B and C are (B, N).

    Computed in float32, or in float64 where x is.

    Raises:
        UserError: a batch of another size than the state's, heads as Mamba-2 has them, or a shape that does not match.
    """
    _check_update(state, {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias})
    dtype = torch.promote_types(x.dtype, torch.float32)
    step_BD1 = step_size(dt, dt_bias, dt_softplus, dtype).unsqueeze(-1)
    A, B, C, wide, old = (t.to(dtype) for t in (A, B, C, x, state))
    new = torch.exp(step_BD1 * A) * old + step_BD1 * wide.unsqueeze(-1) * B.unsqueeze(1)
    with torch.no_grad():
        state.copy_(new)
    y = (new * C.unsqueeze(1)).sum(-1)
    y = y if D is None else y + D.to(dtype) * wide
    return (y if z is None else y * F.silu(z.to(dtype))).to(x.dtype)


def _check_update(state: Tensor, given: dict[str, Tensor | None]) -> None:
    """What would be broadcast, one sequence's for all among it, is refused."""
    function, shape = "selective_state_update", tuple(getattr(state, "shape", ()))
    if len(shape) != 3:
        raise UserError(
            f"{function} got state of shape {shape}, expected (batch, channels, states): heads, as Mamba-2 has them, "
            "are not taken"
        )
    batch, channels, states = shape
    shapes: dict[str, tuple[int, ...]] = {name: (batch, channels) for name in ("x", "dt", "z")}
    shapes |= {"A": (channels, states), "B": (batch, states), "C": (batch, states)}
    shapes |= {name: (channels,) for name in ("D", "dt_bias")}
    for name, tensor in given.items():
        if tensor is not None or name not in ("D", "z", "dt_bias"):
            check_shape(function, name, tensor, shapes[name], f"what fits the state {shape}")
