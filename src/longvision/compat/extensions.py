"""The compiled extensions that other code calls directly, with their positional arguments: what autograd.Functions of
mamba_ssm, causal_conv1d, VMamba and their forks are made of.

A backward needs the inputs of our forward alone: it computes the rest again.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.compat.convolution import causal_conv1d_fn
from longvision.compat.convolution import causal_conv1d_update as update_state
from longvision.compat.scan import selective_scan_fn
from longvision.errors import UserError
from longvision.ops.common import widened

# selective_scan_cuda, _core and _oflex


def scan_fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> list[Tensor]:
    """-> the output before the gate, states whose last one is [:, :, -1, 1::2], and with z the gated output."""
    wide = u if z is None else widened(u)  # for the gate: both outputs are rounded once
    out, last = selective_scan_fn(wide, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True)
    # Pairs of a decay, which nobody reads, and a state; one chunk.
    states = torch.stack([torch.zeros_like(last), last], -1).flatten(-2).unsqueeze(2)
    outputs = [out] if z is None else [out, out * F.silu(widened(z))]
    out, *gated = (each.to(u.dtype) for each in outputs)
    return [out, states, *gated]


def scan_bwd(u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z) -> list:
    """-> gradients of u, delta, A, B, C, D, delta_bias; with z its own, in `dz` if given; and the gated output."""

    def scan(u, delta, A, B, C, D, delta_bias, z):
        wide = u.to(dout.dtype)  # VMamba's output may be in float32 where u is not
        return selective_scan_fn(wide, delta, A, B, C, D, z, delta_bias, delta_softplus)

    out_z, grads = _gradients(scan, (u, delta, A, B, C, D, delta_bias, z), dout)
    result = grads[:7]
    if z is not None:
        result.append(grads[7] if dz is None else dz.copy_(grads[7]))
    return [*result, out_z] if recompute_out_z else result


def core_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows=1) -> list[Tensor]:
    """-> the output and states, as `scan_fwd` without a gate."""
    return scan_fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def core_bwd(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus, nrows=1) -> list:
    """-> gradients of u, delta, A, B, C, D, delta_bias."""
    return scan_bwd(u, delta, A, B, C, D, None, delta_bias, dout, x, None, None, delta_softplus, False)


def oflex_fwd(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows=1, out_float=True) -> list[Tensor]:
    """`core_fwd`, the output in float32 where `out_float`."""
    wide = u.float() if out_float else u
    return core_fwd(wide, delta, A, B, C, D, delta_bias, delta_softplus)


# causal_conv1d_cuda. Which version's arguments came follows from how many there are.


def conv_fwd(x, weight, bias, *rest) -> Tensor | None:
    """1.0: silu. 1.1: seq_idx, silu. Up to 1.4: seq_idx, initial_states, final_states_out, silu. From 1.5 on: seq_idx,
    initial_states, out, final_states_out, silu, and nothing is returned."""
    if len(rest) not in (1, 2, 4, 5):
        raise _unknown("causal_conv1d_fwd", 3 + len(rest))
    *given, silu = rest
    written = given.pop(2) if len(given) == 4 else None
    seq_idx, initial_states, final_states_out = (*given, None, None, None)[:3]
    out = _convolve(x, weight, bias, seq_idx, initial_states, final_states_out, silu)
    out = out[0] if isinstance(out, tuple) else out
    if written is None:
        return out
    written.copy_(out)
    return None


def conv_bwd(x, weight, bias, dout, *rest) -> tuple | None:
    """1.0: dx, silu. 1.1: seq_idx, dx, silu. Up to 1.4: seq_idx, initial_states, dfinal_states, dx,
    return_dinitial_states, silu. From 1.5 on: seq_idx, initial_states, dfinal_states, dx, dweight, dbias,
    dinitial_states, silu, and nothing is returned.

    -> gradients of x (in `dx` if given), weight, bias and, from 1.2 on, the initial states.
    """
    if len(rest) not in (2, 3, 6, 8):
        raise _unknown("causal_conv1d_bwd", 4 + len(rest))
    seq_idx = rest[0] if len(rest) > 2 else None
    initial_states, dfinal_states = rest[1:3] if len(rest) > 3 else (None, None)
    silu = rest[-1]

    def convolve(x, weight, bias, initial_states):
        return _convolve(x, weight, bias, seq_idx, initial_states, None, silu, dfinal_states is not None)

    grad = dout if dfinal_states is None else (dout, dfinal_states)
    _, (dx, dweight, dbias, dinitial) = _gradients(convolve, (x, weight, bias, initial_states), grad)
    if len(rest) == 8:
        for written, found in zip(rest[3:7], (dx, dweight, dbias, dinitial)):
            if written is not None and found is not None:
                written.copy_(found)
        return None
    given_dx = rest[-3] if len(rest) == 6 else rest[-2]
    dx = dx if given_dx is None else given_dx.copy_(dx)
    return (dx, dweight, dbias, dinitial if rest[-2] else None) if len(rest) == 6 else (dx, dweight, dbias)


def conv_update(x, conv_state, weight, bias, *rest) -> Tensor | None:
    """Up to 1.3: silu. 1.4: silu, cache_seqlens and, later, conv_state_indices. From 1.5 on: out, silu, both, and
    nothing is returned."""
    if len(rest) not in (1, 2, 3, 4):
        raise _unknown("causal_conv1d_update", 4 + len(rest))
    written = rest[0] if isinstance(rest[0], Tensor) else None
    silu, *which = rest if written is None else rest[1:]
    out = update_state(x, conv_state, weight, bias, "silu" if silu else None, *which)
    if written is None:
        return out
    written.copy_(out)
    return None


def _convolve(x, weight, bias, seq_idx, initial_states, final_states_out, silu, with_final=False) -> Any:
    with_final = with_final or final_states_out is not None
    activation = "silu" if silu else None
    return causal_conv1d_fn(x, weight, bias, seq_idx, initial_states, with_final, final_states_out, activation)


def _unknown(function: str, arguments: int) -> UserError:
    return UserError(f"causal_conv1d_cuda.{function} got {arguments} arguments, as no known version of it has")


def _gradients(function: Callable, tensors: tuple, grad: Any) -> tuple[Any, list]:
    """-> what the function gives, and the gradient of each tensor, None for None."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        output = function(*leaves)
        found = iter(torch.autograd.grad(output, [leaf for leaf in leaves if leaf is not None], grad))
    output = output if isinstance(output, tuple) else output.detach()
    return output, [None if leaf is None else next(found) for leaf in leaves]
