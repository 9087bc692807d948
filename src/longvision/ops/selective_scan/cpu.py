"""The selective scan in C++ (ops/kernels/cpp/scan.h): the fastest on a CPU.

The forward saves the state with which each chunk of CHUNK tokens begins; the backward recomputes from it, so that no
(B, M, E, N) tensor ever exists. What is summed, and in which order, depends on the shapes alone: results are the same
for every number of threads.
"""

from functools import reduce

import torch
from torch import Tensor

from longvision.ops.common import boundaries_for_cpu
from longvision.ops.kernels.cpp import (
    Library,
    address,
    cached_empty,
    contiguous,
    contiguous_channels,
    double,
    kernels_for,
    pack,
    rows,
)
from longvision.ops.selective_scan.inputs import ScanInputs

CHUNK = 64  # tokens, as in sequences.h
GROUP = 4  # vectors of channels in a task, as in scan.h


def forward(inputs: ScanInputs, keep: bool) -> tuple[Tensor, Tensor | None]:
    """-> y (B, M, E) and the state before each chunk (B, chunks, N, E), float32 or better (None unless `keep`)."""
    library, scan, A_EN = _prepare(inputs)
    batch, tokens, width = inputs.x_BME.shape
    y_BME = cached_empty(batch, tokens, width, dtype=library.dtype)
    states_BKNE = new_states(inputs.x_BME, A_EN, inputs.cu_seqlens) if keep else None
    slots = num_chunks(tokens, inputs.cu_seqlens)
    library.scan_forward(scan + pack(*rows(y_BME), *rows(None), address(states_BKNE), slots))
    return y_BME.to(inputs.x_BME.dtype), states_BKNE


def backward(grad_BME: Tensor, states_BKNE: Tensor, inputs: ScanInputs) -> tuple[Tensor, ...]:
    """-> gradients of x, delta, A, B, C, D, z, delta_bias, each in its tensor's dtype (empty where it has none)."""
    library, scan, A_EN = _prepare(inputs)
    grads = ScanGradients(library, inputs.x_BME.shape, A_EN)
    grad_BME = grad_BME.to(library.dtype).contiguous()
    dz_BME = None if inputs.z_BME is None else torch.empty_like(grad_BME)
    written = grads.record(grad_BME, states_BKNE) + pack(*rows(None), *rows(None), *rows(dz_BME))
    library.scan_backward(scan + written)

    dB_BMN, dC_BMN = (part.sum(0) for part in grads.dBC_parts.chunk(2, dim=-1))
    in_order = (grads.dx, grads.ddelta, grads.dA(), dB_BMN, dC_BMN, grads.dD(), dz_BME, grads.dbias())
    return tuple(
        A_EN.new_empty(0) if tensor is None or grad is None else grad.to(tensor.dtype).contiguous()
        for grad, tensor in zip(in_order, inputs[:8])
    )


def new_states(x_BME: Tensor, A_EN: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(B, chunks, N, E)."""
    batch, tokens, width = x_BME.shape
    dtype = torch.promote_types(x_BME.dtype, torch.float32)
    return A_EN.new_empty(batch, num_chunks(tokens, cu_seqlens), A_EN.shape[1], width, dtype=dtype)


def num_chunks(tokens: int, cu_seqlens: Tensor | None) -> int:
    """Of at most CHUNK tokens, none across a boundary: at most so many, wherever the boundaries are."""
    sequences = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return tokens // CHUNK + sequences


def scan_record(
    x_BME: Tensor,
    delta_BMR: Tensor,
    A_EN: Tensor,
    B_BMN: Tensor,
    C_BMN: Tensor,
    D_E: Tensor | None,
    z_BME: Tensor | None,
    bias_E: Tensor | None,
    boundaries: Tensor,
    softplus: bool,
    reverse: bool,
    weight_ER: Tensor | None = None,
    other_BME: Tensor | None = None,
    scale: float = 1.0,
    log_decay: bool = False,
) -> bytes:
    """`Scan` of scan.h, where each field is explained.

    Tensors of tokens are in the kernels' dtype with contiguous channels, the others contiguous in its precision; the
    caller keeps all of them alive until the call is over.
    """
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

    def dA(self) -> Tensor:
        return self._dA.sum(0)

    def dD(self) -> Tensor:
        return self._dD.sum(0)

    def dbias(self) -> Tensor:
        return self._dbias.sum(0)


def _prepare(inputs: ScanInputs) -> tuple[Library, "_Record", Tensor]:
    """-> the kernels, the record of the inputs, and A in the precision computed in."""
    library = kernels_for(reduce(torch.promote_types, (t.dtype for t in inputs.of_tokens())))
    of_tokens = (inputs.x_BME, inputs.delta_BME, inputs.B_BMN, inputs.C_BMN, inputs.z_BME)
    x, delta, B, C, z = (None if t is None else contiguous_channels(t.to(library.dtype)) for t in of_tokens)
    parameters = inputs.A_EN, inputs.D_E, inputs.delta_bias_E
    A, D, bias = (None if t is None else contiguous(t, library.real) for t in parameters)
    assert x is not None and delta is not None and B is not None and C is not None and A is not None
    boundaries = boundaries_for_cpu(inputs.cu_seqlens, x.shape[1])
    record = scan_record(x, delta, A, B, C, D, z, bias, boundaries, inputs.delta_softplus, inputs.reverse)
    return library, _Record(record, (x, delta, A, B, C, D, z, bias, boundaries)), A


class _Record:
    """A record, and the tensors whose addresses it holds."""

    def __init__(self, data: bytes, alive: tuple[Tensor | None, ...]) -> None:
        self.data, self.alive = data, alive

    def __add__(self, other: bytes) -> bytes:
        return self.data + other
