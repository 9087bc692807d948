"""The cross scan in C++ (ops/kernels/cpp/scan.h), in one call: a task takes its channels in the four directions one
after the other, so that x, the output and the gradient of x are those of one image, and stay near."""

from torch import Tensor

from longvision.ops.cross_scan.inputs import CrossInputs
from longvision.ops.cross_scan.reference import DIRECTIONS
from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.record import address, contiguous_channels, pack, rows
from longvision.ops.selective_scan import cpu as scan


def forward(inputs: CrossInputs, states_KBLNE: Tensor | None) -> Tensor:
    """-> y (B, M, E); writes the states before the chunks of each direction, unless that is None."""
    prepared = [scan.prepared(direction) for direction in _readable(inputs).directions()]
    library, slots = prepared[0][0], scan.num_chunks(inputs.x_BME.shape[1], None)
    y_BME = cached_empty(*inputs.x_BME.shape, dtype=library.dtype)
    # Summed in the precision that is computed in, which is mostly that of the output.
    sum_BME = y_BME if library.dtype == library.real else cached_empty(*y_BME.shape, dtype=library.real)
    outputs = []
    for k in range(DIRECTIONS):
        last, other_BME = k + 1 == DIRECTIONS, sum_BME if k else None
        to = *rows(y_BME if last else None), *rows(None if last else sum_BME), *rows(other_BME)
        outputs.append(pack(*to, address(None if states_KBLNE is None else states_KBLNE[k]), slots))
    library.scans_forward(b"".join(_records(prepared) + outputs), 1, DIRECTIONS)
    return y_BME


def backward(grad_BME: Tensor, states_KBLNE: Tensor, inputs: CrossInputs) -> tuple[Tensor | None, ...]:
    """-> gradients of the tensors of `CrossInputs`."""
    prepared = [scan.prepared(direction) for direction in _readable(inputs).directions()]
    library = prepared[0][0]
    (batch, tokens, width), states = inputs.x_BME.shape, inputs.A_KEN.shape[2]
    grad_BME = contiguous_channels(grad_BME.to(library.dtype))
    dx_BME = cached_empty(batch, tokens, width, dtype=library.real)
    ddelta_BMKE = cached_empty(batch, tokens, DIRECTIONS, width, dtype=library.real)
    # What is summed later, in a fixed order: over the tasks' channels, and over the batch.
    dBC_KTBMN = cached_empty(
        *(DIRECTIONS, scan.num_tasks(width, library), batch, tokens, 2 * states), dtype=library.real
    )
    dA_KBEN = grad_BME.new_empty(DIRECTIONS, batch, width, states, dtype=library.real)
    dD_KBE, dbias_KBE = (grad_BME.new_empty(DIRECTIONS, batch, width, dtype=library.real) for _ in range(2))
    outputs = []
    for k in range(DIRECTIONS):
        written = pack(
            *(*rows(grad_BME), *rows(None)),
            *(states_KBLNE[k].data_ptr(), states_KBLNE.shape[2]),
            *(*rows(dx_BME), *rows(ddelta_BMKE[:, :, k])),
            *(t[k].data_ptr() for t in (dBC_KTBMN, dA_KBEN, dD_KBE, dbias_KBE)),
            *(*rows(None), *rows(None), 0, k > 0),
        )
        outputs.append(written)
    library.scans_backward(b"".join(_records(prepared) + outputs), 1, DIRECTIONS)
    dB_BMKN, dC_BMKN = (part.sum(1).permute(1, 2, 0, 3) for part in dBC_KTBMN.chunk(2, dim=-1))
    return dx_BME, ddelta_BMKE, dA_KBEN.sum(1), dB_BMKN, dC_BMKN, dD_KBE.sum(1), dbias_KBE.sum(1)


def states_shape(inputs: CrossInputs) -> tuple[int, ...]:
    """(K, B, chunks, N, E)."""
    return DIRECTIONS, *scan.states_shape(next(inputs.directions()))


def _readable(inputs: CrossInputs) -> CrossInputs:
    """With what the four directions share brought into the kernels' layout once."""
    return inputs._replace(x_BME=contiguous_channels(inputs.x_BME))


def _records(prepared: list) -> list[bytes]:
    return [scan.scan_record(own, boundaries, None, own.x_BME.shape[2]) for _, own, boundaries in prepared]
