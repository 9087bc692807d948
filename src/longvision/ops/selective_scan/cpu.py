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
from longvision.ops.kernels.cpp.record import address, contiguous, contiguous_channels, double, pack, rows
from longvision.ops.selective_scan.inputs import ScanInputs

CHUNK = 64  # tokens, as in sequences.h
GROUP = 4  # vectors of channels in a task, as in scan.h


def forward(inputs: ScanInputs, states_BKNE: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the state before each chunk, unless that is None."""
    library, given, boundaries = _prepare(inputs)
    y_BME = cached_empty(*inputs.x_BME.shape, dtype=library.dtype)
    slots = num_chunks(inputs.x_BME.shape[1], inputs.cu_seqlens)
    written = pack(*rows(y_BME), *rows(None), address(states_BKNE), slots)
    library.scan_forward(scan_record(given, boundaries) + written)
    return y_BME


def backward(grad_BME: Tensor, states_BKNE: Tensor, inputs: ScanInputs) -> tuple[Tensor | None, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias."""
    library, given, boundaries = _prepare(inputs)
    grads = ScanGradients(library, inputs.x_BME.shape, given.A_EN)
    grad_BME = grad_BME.to(library.dtype).contiguous()
    dz_BME = None if inputs.z_BME is None else torch.empty_like(grad_BME)
    written = grads.record(grad_BME, states_BKNE) + pack(*rows(None), *rows(None), *rows(dz_BME))
    library.scan_backward(scan_record(given, boundaries) + written)
    dB_BMN, dC_BMN = (part.sum(0) for part in grads.dBC_parts.chunk(2, dim=-1))
    dA_EN, dD_E, dbias_E = grads.of_parameters()
    return grads.dx, grads.ddelta, dA_EN, dB_BMN, dC_BMN, dD_E, dz_BME, dbias_E


def states_shape(inputs: ScanInputs) -> tuple[int, ...]:
    """(B, chunks, N, E)."""
    (batch, tokens, width), states = inputs.x_BME.shape, inputs.A_EN.shape[1]
    return batch, num_chunks(tokens, inputs.cu_seqlens), states, width


def num_chunks(tokens: int, cu_seqlens: Tensor | None) -> int:
    """Of at most CHUNK tokens, none across a boundary: at most so many, wherever the boundaries are."""
    sequences = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return tokens // CHUNK + sequences


def scan_record(
    inputs: ScanInputs,
    boundaries: Tensor,
    weight_ER: Tensor | None = None,
    other_BME: Tensor | None = None,
    scale: float = 1.0,
    log_decay: bool = False,
) -> bytes:
    """`Scan` of scan.h, where each field is explained.

    Tensors of tokens are in the kernels' dtype with contiguous channels, the others contiguous in its precision; the
    caller keeps all of them alive until the call is over.
    """
    x_BME, delta_BMR, A_EN, B_BMN, C_BMN, D_E, z_BME, bias_E, _, softplus, reverse = inputs
    batch, tokens, width = x_BME.shape
    rank = 0 if weight_ER is None else weight_ER.shape[1]
    return pack(
        *(batch, tokens, width, A_EN.shape[1], rank, torch.get_num_threads()),
        *(reverse, softplus, log_decay, boundaries.data_ptr(), len(boundaries) - 1),
        *rows(x_BME),
        *rows(delta_BMR),
        *(address(weight_ER), address(bias_E), A_EN.data_ptr()),
        *rows(B_BMN),
        *rows(C_BMN),
        address(D_E),
        *rows(z_BME),
        *rows(other_BME),
        *(double(scale), 0),
    )


class ScanGradients:
    """Memory for what the backward kernel writes per token, and per task; the latter is summed in a fixed order.

    `dBC_parts` is (tasks, B, M, 2 N): gradients of B, and of C behind them.
    """

    def __init__(self, library: Library, shape_BME: torch.Size, A_EN: Tensor) -> None:
        batch, tokens, width = shape_BME
        states = A_EN.shape[1]
        groups = -(-width // (GROUP * library.lanes))
        self.dx, self.ddelta = cached_empty(*shape_BME, dtype=A_EN.dtype), cached_empty(*shape_BME, dtype=A_EN.dtype)
        self.dBC_parts = cached_empty(groups, batch, tokens, 2 * states, dtype=A_EN.dtype)
        self._dA = A_EN.new_empty(batch, width, states)
        self._dD, self._dbias = A_EN.new_empty(batch, width), A_EN.new_empty(batch, width)

    def record(self, grad_BME: Tensor, states_BKNE: Tensor) -> bytes:
        """The first fields of `ScanGradients` of scan.h."""
        summed_later = (self.dBC_parts, self._dA, self._dD, self._dbias)
        return pack(
            *rows(grad_BME),
            *(states_BKNE.data_ptr(), states_BKNE.shape[1]),
            *rows(self.dx),
            *rows(self.ddelta),
            *(tensor.data_ptr() for tensor in summed_later),
        )

    def of_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of A, D and the bias."""
        return self._dA.sum(0), self._dD.sum(0), self._dbias.sum(0)


def _prepare(inputs: ScanInputs) -> tuple[Library, ScanInputs, Tensor]:
    """-> the kernels, the inputs as they take them, and the boundaries of packed sequences."""
    library = kernels_for(inputs.x_BME.dtype)
    of_tokens = inputs.x_BME, inputs.delta_BME, inputs.B_BMN, inputs.C_BMN, inputs.z_BME
    x, delta, B, C, z = (None if t is None else contiguous_channels(t.to(library.dtype)) for t in of_tokens)
    parameters = inputs.A_EN, inputs.D_E, inputs.delta_bias_E
    A, D, bias = (None if t is None else contiguous(t, library.real) for t in parameters)
    given = ScanInputs._make((x, delta, A, B, C, D, z, bias, *inputs[8:]))
    return library, given, boundaries_for_cpu(inputs.cu_seqlens, inputs.x_BME.shape[1])
