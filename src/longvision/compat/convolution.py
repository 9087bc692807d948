"""causal_conv1d's convolution: its arguments and layouts on our op, its update of a cache, and the equations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.compat.checks import check_shape, check_tokens, takes_silu
from longvision.errors import UserError
from longvision.ops import causal_conv1d


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """(B, D, L) -> (B, D, L) in x's dtype and memory layout, and with `return_final_states` the last inputs.

    Args:
        x: input, batch x channels x tokens.
        weight: a filter of W taps a channel, (D, W); the last tap is the token itself.
        bias: (D,).
        seq_idx: (B, L) integers: tokens do not look over a change of the number; where it is negative the output is 0.
        initial_states: (B, D, W - 1), the inputs before the first token; None for zeros.
        final_states_out: (B, D, W - 1), what the final states are written to; only with `return_final_states`.
        activation: None, "silu" or "swish".

    Raises:
        UserError: an unknown activation, states beside `seq_idx`, or a shape that does not match.
    """
    silu = takes_silu("causal_conv1d_fn", activation)
    _check("causal_conv1d_fn", x, weight, bias)
    taps = weight.shape[1]
    for name, states in (("initial_states", initial_states), ("final_states_out", final_states_out)):
        if states is not None:
            shape = *x.shape[:2], taps - 1
            check_shape("causal_conv1d_fn", name, states, shape, "(batch, channels, width - 1)")
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise UserError("causal_conv1d_fn got seq_idx and states: packed sequences begin and end without states")
        check_shape("causal_conv1d_fn", "seq_idx", seq_idx, (x.shape[0], x.shape[2]), "(batch, tokens)")
        if len(x):  # else there is nothing to pack
            return _laid_out_as(x, _packed(x.mT, weight, bias, seq_idx, silu))
    out = _laid_out_as(x, _after(initial_states, x, weight, bias, silu))
    if not return_final_states:
        return out
    seen_BDL = x if initial_states is None else torch.cat([initial_states.to(x.dtype), x], 2)
    # Before the first token there are zeros; where there are more tokens, the padding is negative and crops.
    final_states = F.pad(seen_BDL, (taps - 1 - seen_BDL.shape[2], 0))
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return out, final_states


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """(B, D) or (B, D, L) -> the same: the convolution of the next tokens; writes `conv_state` in place.

    Args:
        conv_state: (B, D, S), S >= W - 1, the past inputs, newest last.
        cache_seqlens: (B,) integers: how many tokens came before. The state is then a ring buffer, with token t at
            t mod S.
        conv_state_indices: (B,) integers: the row of `conv_state` that belongs to each row of x; where it is negative
            the output is 0.

    Raises:
        UserError: an unknown activation, a batch of another size than the state's, or a shape that does not match.
    """
    silu = takes_silu("causal_conv1d_update", activation)
    x_BDL = x.unsqueeze(-1) if getattr(x, "ndim", 0) == 2 else x
    _check("causal_conv1d_update", x_BDL, weight, bias)
    batch, channels, _ = x_BDL.shape
    for name, each in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if each is not None:
            check_shape("causal_conv1d_update", name, each, (batch,), "(batch,)")
    shape = tuple(getattr(conv_state, "shape", ()))
    rows, size = batch if conv_state_indices is None else (*shape, 0)[0], (0, *shape)[-1]
    check_shape("causal_conv1d_update", "conv_state", conv_state, (rows, channels, size), "(batch, channels, size)")
    if size < weight.shape[1] - 1:
        raise UserError(
            f"causal_conv1d_update got a conv_state of {size} inputs, expected {weight.shape[1] - 1} or more"
        )
    if conv_state_indices is None:
        out = _updated(x_BDL, conv_state, weight, bias, silu, cache_seqlens)
    else:
        real_B = conv_state_indices >= 0
        rows_B = conv_state_indices.clamp(min=0).long()
        own_state = conv_state[rows_B]
        out = _updated(x_BDL, own_state, weight, bias, silu, cache_seqlens)
        conv_state[rows_B[real_B]] = own_state[real_B]
        out = out.masked_fill(~real_B[:, None, None], 0)
    return out.squeeze(-1) if x.ndim == 2 else out


def _updated(
    x_BDL: Tensor, state_BDS: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, cache_seqlens: Tensor | None
) -> Tensor:
    """-> (B, D, L); writes the state."""
    (tokens, size), before = (x_BDL.shape[2], state_BDS.shape[2]), weight.shape[1] - 1
    given_BDL = x_BDL.detach().to(state_BDS.dtype)
    if cache_seqlens is None:
        out_BDL = _after(state_BDS, x_BDL, weight, bias, silu).mT
        state_BDS.copy_(torch.cat([state_BDS, given_BDL], 2)[:, :, tokens:])
        return out_BDL
    past_BDW = state_BDS.gather(2, _ring(cache_seqlens, -before, 0, state_BDS))
    out_BDL = _after(past_BDW, x_BDL, weight, bias, silu).mT
    kept = given_BDL[:, :, -size:]  # of more tokens than the ring holds, the last ones
    state_BDS.scatter_(2, _ring(cache_seqlens, tokens - kept.shape[2], tokens, state_BDS), kept)
    return out_BDL


def _ring(cache_seqlens: Tensor, first: int, end: int, state_BDS: Tensor) -> Tensor:
    """(B, D, end - first): where in the ring the tokens first .. end - 1 lie, counted from the next one."""
    tokens = torch.arange(first, end, device=state_BDS.device) + cache_seqlens.long()[:, None]
    return (tokens % state_BDS.shape[2])[:, None].expand(-1, state_BDS.shape[1], -1)


def _after(past_BDW: Tensor | None, x_BDL: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """-> (B, L, D), the convolution of x after the past inputs."""
    if past_BDW is None:
        return causal_conv1d(x_BDL.mT, weight, bias, silu)
    seen_BLD = torch.cat([past_BDW.mT.to(x_BDL.dtype), x_BDL.mT], 1)
    return causal_conv1d(seen_BLD, weight, bias, silu)[:, past_BDW.shape[2] :]


def _packed(x_BLD: Tensor, weight: Tensor, bias: Tensor | None, seq_idx_BL: Tensor, silu: bool) -> Tensor:
    """(B, L, D) -> (B, L, D), no sequence looking into the one before it: all rows are one row of sequences."""
    begins_BL = F.pad(seq_idx_BL[:, 1:] != seq_idx_BL[:, :-1], (1, 0), value=True)
    begins = begins_BL.flatten().nonzero().flatten().to(torch.int32)
    cu_seqlens = F.pad(begins, (0, 1), value=begins_BL.numel())
    y_1MD = causal_conv1d(x_BLD.reshape(1, -1, x_BLD.shape[2]), weight, bias, silu, cu_seqlens=cu_seqlens)
    return y_1MD.view(x_BLD.shape).masked_fill(seq_idx_BL.unsqueeze(-1) < 0, 0)


def _laid_out_as(x_BDL: Tensor, y_BLD: Tensor) -> Tensor:
    """(B, L, D) -> (B, D, L), its channels contiguous where x's are, else its tokens."""
    is_channels_last = x_BDL.stride(1) == 1 and x_BDL.stride(2) != 1
    return y_BLD.mT if is_channels_last else y_BLD.mT.contiguous()


def _check(function: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tokens(function, "x", x)
    width = weight.shape[-1] if isinstance(weight, Tensor) and weight.ndim else 0
    check_shape(function, "weight", weight, (x.shape[1], width), "(channels, width)")
    if bias is not None:
        check_shape(function, "bias", bias, (x.shape[1],), "(channels,)")


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`causal_conv1d_fn` in plain torch."""
    silu, taps = takes_silu("causal_conv1d_ref", activation), weight.shape[1]
    past = x.new_zeros(*x.shape[:2], taps - 1) if initial_states is None else initial_states
    seen = torch.cat([past.to(weight.dtype), x.to(weight.dtype)], 2)
    out = F.conv1d(seen, weight.unsqueeze(1), bias, groups=len(weight))
    out = (F.silu(out) if silu else out).to(x.dtype)
    if not return_final_states:
        return out
    final_states = seen[:, :, seen.shape[2] - taps + 1 :].to(x.dtype)
    return out, final_states if final_states_out is None else final_states_out.copy_(final_states)


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` in plain torch, a token after the other."""
    silu, taps = takes_silu("causal_conv1d_update_ref", activation), weight.shape[1]
    rows, outs = torch.arange(len(x), device=x.device), []
    for t, token_BD in enumerate((x.unsqueeze(-1) if x.ndim == 2 else x).unbind(-1)):
        past_BDS, place_B = conv_state, None
        if cache_seqlens is not None:
            place_B = (cache_seqlens.long() + t) % conv_state.shape[2]
            oldest_first = [
                conv_state[rows, :, (place_B - back) % conv_state.shape[2]] for back in range(taps - 1, 0, -1)
            ]
            past_BDS = torch.stack(oldest_first, -1)
        seen_BDS = torch.cat([past_BDS, token_BD.unsqueeze(-1)], -1).to(weight.dtype)
        out_BD = (seen_BDS[:, :, -taps:] * weight).sum(-1)
        outs.append(out_BD if bias is None else out_BD + bias)
        if place_B is None:
            conv_state.copy_(seen_BDS[:, :, 1:])
        else:
            conv_state[rows, :, place_B] = token_BD
    out = torch.stack(outs, -1)
    out = (F.silu(out) if silu else out).to(x.dtype)
    return out.squeeze(-1) if x.ndim == 2 else out
