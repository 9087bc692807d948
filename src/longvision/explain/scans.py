"""The hidden attention of selective scans (arXiv 2403.01590): the matrix that a scan multiplies its input with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longvision.layers.memory import own_tokens
from longvision.layers.mixer import VimMixer
from longvision.ops.common import widened
from longvision.ops.selective_scan.reference import step_size


def hidden_attention(
    step_BME: Tensor, A_EN: Tensor, B_BMN: Tensor, C_BMN: Tensor, heads: int, reverse: bool = False
) -> Tensor:
    """(B, heads, M, M): what token i takes of token j, averaged over the channels of a head, E / heads in a row.

    map[i, j] = mean over channels e of sum_n C[i, n] (prod_{k = j + 1 .. i} exp(step[k, e] A[e, n])) step[j, e] B[j, n]

    With as many heads as channels, map @ x is the scan of x without its D. Entries may be negative; above the diagonal
    (with `reverse`, below it) they are 0. The time grows with M², the memory beside the maps with M E N.

    Args:
        step_BME: softplus of the step and its bias.
        A_EN: as in `longvision.ops.selective_scan`, and so are B and C.
        heads: groups of channels; they divide E.
        reverse: of a scan from the last token to the first.
    """
    if reverse:
        step_BME, B_BMN, C_BMN = (x.flip(1) for x in (step_BME, B_BMN, C_BMN))
    batch, tokens, channels = step_BME.shape
    map_BHMM = step_BME.new_zeros(batch, heads, tokens, tokens)
    held_BMEN = step_BME.new_empty(batch, tokens, channels, A_EN.shape[1])  # of each token what is left in the state
    for i in range(tokens):
        held_BMEN[:, :i] *= torch.exp(step_BME[:, i, :, None] * A_EN)[:, None]
        held_BMEN[:, i] = step_BME[:, i, :, None] * B_BMN[:, i, None]
        of_heads_BJHN = held_BMEN[:, : i + 1].unflatten(2, (heads, -1)).mean(3)
        map_BHMM[:, :, i, : i + 1] = torch.einsum("bjhn,bn->bhj", of_heads_BJHN, C_BMN[:, i])
    return map_BHMM.flip(2, 3) if reverse else map_BHMM


def scan_layers(model: nn.Module) -> dict[str, VimMixer]:
    """The mixers that scan, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, VimMixer)}


@contextmanager
def watched_scans(model: nn.Module, take: Callable[[int, Tensor], None], heads: int) -> Iterator[None]:
    """Inside, whenever the model runs, `take` gets the number of each mixer and the hidden attention of its scans
    (B, heads, M, M), the mean of its directions, as the mixer takes the mean of their outputs. Memory tokens of a block
    are left out, as rows and as columns.

    A mixer with hooks on its layers calls them one by one, so that they are seen.
    """
    hooks, tokens = [], own_tokens(model)
    for number, mixer in enumerate(scan_layers(model).values()):
        projected: list[Tensor] = []  # of each direction what x_proj and then what dt_proj returns
        for name, module in mixer.named_children():
            if name.startswith(("x_proj", "dt_proj")):
                hooks.append(module.register_forward_hook(lambda _, __, out, to=projected: to.append(out)))
        own = tokens.get(mixer, slice(None))
        hooks.append(mixer.register_forward_hook(partial(_take_mixer, partial(take, number), own, heads, projected)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take_mixer(
    take: Callable[[Tensor], None], tokens: slice, heads: int, projected: list[Tensor], mixer: Any, *_: Any
) -> None:
    directions = mixer.scan_directions()
    sum_BHMM: Any = 0
    for own, low, step in zip(directions, projected[::2], projected[1::2], strict=True):
        _, B_BMN, C_BMN = widened(low).split([mixer.rank, mixer.state, mixer.state], dim=-1)
        step_BME = step_size(step, None, True, B_BMN.dtype)
        sum_BHMM += hidden_attention(step_BME, -torch.exp(widened(own.A_log_EN)), B_BMN, C_BMN, heads, own.reverse)
    projected.clear()
    take(sum_BHMM[:, :, tokens, tokens] / len(directions))
