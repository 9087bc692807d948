"""The selective scan in C++ (ops/kernels/cpp/scan.h): the fastest on a CPU.

The forward saves the state with which each chunk of CHUNK tokens begins; the backward recomputes from it, so that no
(B, M, E, N) tensor ever exists. What is summed, and in which order, depends on the shapes alone: results are the same
for every number of threads.

Groups of B and C are scans of their own, over slices of the channels. Tensors whose tokens are contiguous are read and
written as they lie, a chunk at a time, and gradients lie as what they are of; but not the columns of a grid.
"""

import torch
from torch import Tensor

from longvision.ops.common import boundaries_for_cpu
from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import Library, kernels_for
from longvision.ops.kernels.cpp.record import address, by_channel, contiguous, contiguous_channels, pack, rows
from longvision.ops.selective_scan.inputs import ScanInputs, gradient_of_groups

CHUNK = 64  # tokens, as in sequences.h
GROUP = 4  # vectors of channels in a task, as in scan.h


def forward(inputs: ScanInputs, states_BKNE: Tensor | None, last_BEN: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk and the one behind the last token, unless those are None."""
    library, given, boundaries = prepared(inputs)
    y_BME = _empty_like(inputs.x_BME, inputs, library.dtype)
    carry_BNE = _carry(inputs.initial_state_BEN, last_BEN, library.real)
    slots = num_chunks(inputs.x_BME.shape[1], inputs.cu_seqlens)
    scans, outputs = [], []
    for channels, own in given.by_group():
        scans.append(scan_record(own, boundaries, _slice(carry_BNE, channels), inputs.x_BME.shape[2]))
        states = address(_slice(states_BKNE, channels))
        outputs.append(pack(*rows(_slice(y_BME, channels)), *rows(None), *rows(None), states, slots))
    library.scans_forward(b"".join(scans + outputs), len(scans), 1)
    if last_BEN is not None:
        assert carry_BNE is not None
        last_BEN.copy_(carry_BNE.transpose(1, 2))
    return y_BME


def backward(
    grad_BME: Tensor, grad_last_BEN: Tensor | None, states_BKNE: Tensor, inputs: ScanInputs
) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias and the initial state."""
    library, given, boundaries = prepared(inputs)
    (batch, tokens, width), states = inputs.x_BME.shape, inputs.A_EN.shape[1]
    grad_BME = _readable(grad_BME.to(library.dtype), inputs)
    dx_BME, ddelta_BME = (_empty_like(t, inputs, library.real) for t in (inputs.x_BME, inputs.delta_BME))
    dz_BME = None if inputs.z_BME is None else _empty_like(inputs.z_BME, inputs, library.dtype)
    carry_BNE = _carry(grad_last_BEN, inputs.initial_state_BEN, library.real)
    # What is summed later, in a fixed order: over the tasks' channels, and over the batch.
    dBC_GTBMN = cached_empty(
        *(given.groups, num_tasks(width // given.groups, library), batch, tokens, 2 * states), dtype=library.real
    )
    dA_BEN = grad_BME.new_empty(batch, width, states, dtype=library.real)
    dD_BE, dbias_BE = (grad_BME.new_empty(batch, width, dtype=library.real) for _ in range(2))
    scans, outputs = [], []
    for dBC_TBMN, (channels, own) in zip(dBC_GTBMN, given.by_group()):
        scans.append(scan_record(own, boundaries, _slice(carry_BNE, channels), width))
        written = pack(
            *rows(_slice(grad_BME, channels)),
            *rows(None),
            *(address(_slice(states_BKNE, channels)), states_BKNE.shape[1]),
            *rows(_slice(dx_BME, channels)),
            *rows(_slice(ddelta_BME, channels)),
            *(t.data_ptr() for t in (dBC_TBMN, dA_BEN[:, channels], dD_BE[:, channels], dbias_BE[:, channels])),
            *rows(_slice(dz_BME, channels)),
            *rows(None),
            *(0, 0),
        )
        outputs.append(written)
    library.scans_backward(b"".join(scans + outputs), len(scans), 1)
    BC = inputs.B_BMN, inputs.C_BMN
    dB, dC = (gradient_of_groups(part.sum(1), given) for part, given in zip(dBC_GTBMN.chunk(2, dim=-1), BC))
    initial = None if carry_BNE is None else carry_BNE.transpose(1, 2)
    return dx_BME, ddelta_BME, dA_BEN.sum(0), dB, dC, dD_BE.sum(0), dz_BME, dbias_BE.sum(0), initial


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, N, E)."""
    (batch, tokens, width), states = inputs.x_BME.shape, inputs.A_EN.shape[1]
    return batch, num_chunks(tokens, inputs.cu_seqlens), states, width


def keeps_layout(tensor: Tensor, inputs: ScanInputs) -> bool:
    """Whether y, or a gradient, of such a tensor has contiguous tokens as that has."""
    return inputs.grid is None and by_channel(tensor)


def num_chunks(tokens: int, cu_seqlens: Tensor | None) -> int:
    """Of at most CHUNK tokens, none across a boundary: at most so many, wherever the boundaries are."""
    sequences = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return tokens // CHUNK + sequences


def num_tasks(width: int, library: Library) -> int:
    """Into how many tasks a backward divides so many channels."""
    return -(-width // (GROUP * library.lanes))


def prepared(inputs: ScanInputs) -> tuple[Library, ScanInputs, Tensor]:
    """-> the kernels, the inputs as they take them, and the boundaries of packed sequences."""
    library = kernels_for(inputs.x_BME.dtype)
    of_tokens = inputs.x_BME, inputs.delta_BME, inputs.z_BME
    x, delta, z = (None if t is None else _readable(t.to(library.dtype), inputs) for t in of_tokens)
    B, C = (contiguous_channels(t.to(library.dtype)) for t in (inputs.B_BMN, inputs.C_BMN))
    parameters = inputs.A_EN, inputs.D_E, inputs.delta_bias_E
    A, D, bias = (None if t is None else contiguous(t, library.real) for t in parameters)
    given = ScanInputs._make((x, delta, A, B, C, D, z, bias, *inputs[8:]))
    return library, given, boundaries_for_cpu(inputs.cu_seqlens, inputs.x_BME.shape[1])


def scan_record(inputs: ScanInputs, boundaries: Tensor, carry_BNE: Tensor | None, width: int) -> bytes:
    """`Scan` of scan.h, where each field is explained; `width` is that of all groups.

    The inputs are `prepared`; the caller keeps all of them alive until the call is over.
    """
    x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, bias_E, *_ = inputs
    return pack(
        *(*x_BME.shape, width, A_EN.shape[1], 0, torch.get_num_threads()),
        *(inputs.reverse, inputs.delta_softplus, 0, boundaries.data_ptr(), len(boundaries) - 1),
        *(inputs.grid or (0, 0)),
        *rows(x_BME),
        *rows(delta_BME),
        *(0, address(bias_E), A_EN.data_ptr()),
        *rows(B_BMN),
        *rows(C_BMN),
        address(D_E),
        *rows(z_BME),
        address(carry_BNE),
    )


def _readable(tensor: Tensor, inputs: ScanInputs) -> Tensor:
    return tensor if keeps_layout(tensor, inputs) else contiguous_channels(tensor)


def _empty_like(tensor: Tensor, inputs: ScanInputs, dtype: torch.dtype) -> Tensor:
    batch, tokens, width = tensor.shape
    if keeps_layout(tensor, inputs):
        return cached_empty(batch, width, tokens, dtype=dtype).transpose(1, 2)
    return cached_empty(batch, tokens, width, dtype=dtype)


def _carry(begin_BEN: Tensor | None, end_BEN: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, N, E), with which the kernels begin and which they write over: None where nothing begins and no end is
    wanted."""
    if begin_BEN is not None:
        return begin_BEN.transpose(1, 2).to(dtype).clone(memory_format=torch.contiguous_format)
    return None if end_BEN is None else end_BEN.new_zeros(end_BEN.transpose(1, 2).shape, dtype=dtype)


def _slice(tensor: Tensor | None, channels: slice) -> Tensor | None:
    return None if tensor is None else tensor[..., channels]
