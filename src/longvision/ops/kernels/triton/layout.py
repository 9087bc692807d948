"""How tensors lie for the kernels, without any of Triton: also for shapes that are asked for before a kernel runs."""

import torch
from torch import Tensor

MOST_CHANNELS = 16384  # of the normalisation: a row has to fit into the registers of a program
CHUNK = 64  # tokens between the states that are saved for the backward pass


def states_shape(batch: int, tokens: int, width: int, states: int) -> tuple[int, ...]:
    """(B, chunks, E, N) of the states saved for the backward pass."""
    return batch, -(-tokens // CHUNK), width, states


def sequence_numbers(cu_seqlens: Tensor | None, x_BME: Tensor) -> Tensor | None:
    """(M,) int32: which packed sequence each token is of."""
    if cu_seqlens is None:
        return None
    tokens = torch.arange(x_BME.shape[1], device=x_BME.device)
    return torch.searchsorted(cu_seqlens.to(x_BME.device)[1:-1].contiguous(), tokens, right=True).to(torch.int32)
