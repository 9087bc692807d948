"""The selective scan in C++ (ops/kernels/cpp/scan.h): the fastest on a CPU.

The forward saves the state with which each chunk of CHUNK tokens begins; the backward recomputes from it, so that no
(B, M, E, N) tensor ever exists. What is summed, and in which order, depends on the shapes alone: results are the same
for every number of threads.
"""

import torch
from torch import Tensor

from longvision.ops.common import boundaries_for_cpu
from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import Library, kernels_for
from longvision.ops.kernels.cpp.record import address, contiguous, contiguous_channels, pack, rows
from longvision.ops.selective_scan.inputs import ScanInputs

CHUNK = 64  # tokens, as in sequences.h
GROUP = 4  # vectors of channels in a task, as in scan.h


def forward(inputs: ScanInputs, states_BKNE: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk, unless that is None."""
    library, given, boundaries = _prepare(inputs)
    y_BME = cached_empty(*inputs.x_BME.shape, dtype=library.dtype)
    slots = num_chunks(inputs.x_BME.shape[1], inputs.cu_seqlens)
    written = pack(*rows(y_BME), *rows(None), address(states_BKNE), slots)
    library.scan_forward(_scan_record(given, boundaries) + written)
    return y_BME


def backward(grad_BME: Tensor, states_BKNE: Tensor, inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias."""
    library, given, boundaries = _prepare(inputs)
    batch, tokens, width = inputs.x_BME.shape
    states = inputs.A_EN.shape[1]
    grad_BME = grad_BME.to(library.dtype).contiguous()
    dx_BME, ddelta_BME = (cached_empty(batch, tokens, width, dtype=library.real) for _ in range(2))
    # What is summed later, in a fixed order: over the tasks' groups of channels, and over the batch.
    groups = -(-width // (GROUP * library.lanes))
    dBC_GBMN = cached_empty(groups, batch, tokens, 2 * states, dtype=library.real)
    dA_BEN = grad_BME.new_empty(batch, width, states, dtype=library.real)
    dD_BE, dbias_BE = (grad_BME.new_empty(batch, width, dtype=library.real) for _ in range(2))
    dz_BME = None if inputs.z_BME is None else torch.empty_like(grad_BME)
    written = pack(
        *rows(grad_BME),
        *rows(None),
        *(states_BKNE.data_ptr(), states_BKNE.shape[1]),
        *rows(dx_BME),
        *rows(ddelta_BME),
        *(tensor.data_ptr() for tensor in (dBC_GBMN, dA_BEN, dD_BE, dbias_BE)),
        *rows(dz_BME),
        *rows(None),
        0,
    )
    library.scan_backward(_scan_record(given, boundaries) + written)
    dB_BMN, dC_BMN = (part.sum(0) for part in dBC_GBMN.chunk(2, dim=-1))
    return dx_BME, ddelta_BME, dA_BEN.sum(0), dB_BMN, dC_BMN, dD_BE.sum(0), dz_BME, dbias_BE.sum(0)


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, N, E)."""
    (batch, tokens, width), states = inputs.x_BME.shape, inputs.A_EN.shape[1]
    return batch, num_chunks(tokens, inputs.cu_seqlens), states, width


def num_chunks(tokens: int, cu_seqlens: Tensor | None) -> int:
    """Of at most CHUNK tokens, none across a boundary: at most so many, wherever the boundaries are."""
    sequences = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return tokens // CHUNK + sequences


def _scan_record(inputs: ScanInputs, boundaries: Tensor) -> bytes:
    """`Scan` of scan.h, where each field is explained.

    Tensors of tokens are in the kernels' dtype with contiguous channels, the others contiguous in its precision; the
    caller keeps all of them alive until the call is over.
    """
    x_BME, delta_BME, A_EN, B_BMN, C_BMN, D_E, z_BME, bias_E, _, softplus, reverse = inputs
    return pack(
        *(*x_BME.shape, A_EN.shape[1], 0, torch.get_num_threads()),
        *(reverse, softplus, 0, boundaries.data_ptr(), len(boundaries) - 1),
        *rows(x_BME),
        *rows(delta_BME),
        *(0, address(bias_E), A_EN.data_ptr()),
        *rows(B_BMN),
        *rows(C_BMN),
        address(D_E),
        *rows(z_BME),
        0,
    )


def _prepare(inputs: ScanInputs) -> tuple[Library, ScanInputs, Tensor]:
    """-> the kernels, the inputs as they take them, and the boundaries of packed sequences."""
    library = kernels_for(inputs.x_BME.dtype)
    of_tokens = inputs.x_BME, inputs.delta_BME, inputs.B_BMN, inputs.C_BMN, inputs.z_BME
    x, delta, B, C, z = (None if t is None else contiguous_channels(t.to(library.dtype)) for t in of_tokens)
    parameters = inputs.A_EN, inputs.D_E, inputs.delta_bias_E
    A, D, bias = (None if t is None else contiguous(t, library.real) for t in parameters)
    given = ScanInputs._make((x, delta, A, B, C, D, z, bias, *inputs[8:]))
    return library, given, boundaries_for_cpu(inputs.cu_seqlens, inputs.x_BME.shape[1])
