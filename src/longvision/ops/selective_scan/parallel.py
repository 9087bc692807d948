"""The selective scan in plain torch without a loop over the tokens: for tools that read a model's graph.

h_t = a_t h_{t-1} + b_t is solved inside chunks of a few tokens, all chunks side by side, and the same again for what
goes from chunk to chunk. The graph is the same for every number of tokens, and made of torch's own operators; nothing
divides by a decay. It holds a few (B, M, E, N) tensors: right, but not for speed.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.ops import common
from longvision.ops.selective_scan.reference import step_size

CHUNK, LEVELS = 8, 7  # tokens that the last level reaches: two millions


def selective_scan_parallel(
    x_BME: Tensor,
    delta_BME: Tensor,
    A_EN: Tensor,
    B_BMN: Tensor,
    C_BMN: Tensor,
    D_E: Tensor,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """(B, M, E) -> (B, M, E); arguments as in `selective_scan`."""
    x, delta, A, B, C, D = map(common.widened, (x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E))
    delta = step_size(delta, delta_bias_E, delta_softplus, delta.dtype)
    decay_BMEN = torch.exp(delta.unsqueeze(-1) * A)
    if cu_seqlens is not None:  # a packed sequence begins: what came before decays to nothing
        firsts = cu_seqlens[1:] - 1 if reverse else cu_seqlens[:-1]
        decay_BMEN = decay_BMEN.index_fill(1, firsts.to(x.device, torch.int64), 0)
    input_BMEN = (delta * x).unsqueeze(-1) * B.unsqueeze(2)
    if reverse:
        decay_BMEN, input_BMEN = decay_BMEN.flip(1), input_BMEN.flip(1)
    h_BMEN = _solve(decay_BMEN, input_BMEN, LEVELS)
    if reverse:
        h_BMEN = h_BMEN.flip(1)
    return ((h_BMEN * C.unsqueeze(2)).sum(-1) + D * x).to(x_BME.dtype)


def _solve(a_BMEN: Tensor, b_BMEN: Tensor, levels: int) -> Tensor:
    """h_t = a_t h_{t-1} + b_t from h = 0, in chunks; `levels` 0: there is one token."""
    if not levels:
        return b_BMEN
    tokens = b_BMEN.shape[1]
    whole = partial(F.pad, pad=(0, 0, 0, 0, 0, -tokens % CHUNK))
    decays, inputs = (whole(t).unflatten(1, (-1, CHUNK)).unbind(2) for t in (a_BMEN, b_BMEN))
    decay, state = [decays[0]], [inputs[0]]  # (B, chunks, E, N) from a chunk's begin to each of its tokens
    for i in range(1, CHUNK):
        decay.append(decays[i] * decay[-1])
        state.append(decays[i] * state[-1] + inputs[i])
    behind = _solve(decay[-1], state[-1], levels - 1)
    before = F.pad(behind, (0, 0, 0, 0, 1, 0))[:, :-1].unsqueeze(2)  # the state that each chunk begins with
    return (torch.stack(state, 2) + torch.stack(decay, 2) * before).flatten(1, 2)[:, :tokens]
