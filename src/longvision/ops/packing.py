"""Packed sequences: images of different sizes one behind the other in one row of tokens, as FlashAttention's varlen."""

import functools
from itertools import pairwise

import torch
from torch import Tensor


def check_cu_seqlens(cu_seqlens: Tensor, x_BME: Tensor) -> None:
    """Raises TypeError or ValueError unless `cu_seqlens` packs sequences into x's one row of tokens."""
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens of type {type(cu_seqlens).__name__}, expected a torch.Tensor of integers")
    if cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point() or len(cu_seqlens) < 2 or x_BME.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens of shape {tuple(cu_seqlens.shape)} and type {cu_seqlens.dtype} with x of shape "
            f"{tuple(x_BME.shape)}: expected at least two integers, and all sequences packed in a batch of one"
        )
    # The values are not known yet, or cannot be asked for.
    if torch.compiler.is_compiling() or (cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    _check_borders(cu_seqlens, x_BME.shape[1])


def _check_borders(cu_seqlens: Tensor, tokens: int) -> None:
    borders = cu_seqlens.tolist()
    if borders[0] != 0 or borders[-1] != tokens or any(a >= b for a, b in pairwise(borders)):
        raise ValueError(
            f"cu_seqlens {borders} must rise from 0 to the number of tokens, {tokens}, with no empty sequence"
        )


def sequence_borders(cu_seqlens: Tensor | None, tokens: int) -> Tensor:
    """(S + 1,) int64 on the CPU; without packing, of the one sequence.

    Raises ValueError for borders that are none: in a compiled graph nobody has looked at their values before.
    """
    if cu_seqlens is None:
        return _one_sequence(tokens)
    _check_borders(cu_seqlens, tokens)
    return cu_seqlens.to("cpu", torch.int64).contiguous()


@functools.lru_cache
def _one_sequence(tokens: int) -> Tensor:
    return torch.tensor([0, tokens])
