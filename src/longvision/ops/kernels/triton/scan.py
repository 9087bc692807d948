"""The selective scan on Triton kernels: which are started, over which grids, and with which buffers."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longvision.ops.kernels.triton import layout
from longvision.ops.kernels.triton.launch import launch, rows
from longvision.ops.kernels.triton.scan_backward import scan_backward
from longvision.ops.kernels.triton.scan_forward import scan_forward
from longvision.ops.kernels.triton.scan_groups import scan_ends, scan_starts

MOST_STATES = 16  # in a backward kernel: with more it takes minutes to compile, as all n are written out
BLOCK = 256  # of `scan_starts`
PROGRAMS = 1056  # a sequence is split until there are so many: two for each scheduler of an H100
BACKWARD_CHANNELS = 64  # of a program
SPAN = 4  # tokens of a state that the backward pass holds in registers


def forward_channels(states: int) -> int:
    """Of a program, by what fits into registers beside that many states."""
    return 128 if states <= 11 else 64 if states <= 22 else 32


class Scan(NamedTuple):
    """What a direction reads; a tensor that is None is left out.

    `x_BME` and `step_BME` have contiguous channels; `BC_BMN2` is float32, B and C side by side; `A_EN` is contiguous,
    or with `log_decay` log(-A). `sequence_M` numbers the packed sequence of each token, int32. The step is
    `step_BME` plus bias, or softplus of that, which the kernels "take" or somebody has "taken": it is of interest for
    the gradients, which are then of what softplus was taken of.
    """

    x_BME: Tensor
    step_BME: Tensor
    BC_BMN2: Tensor
    A_EN: Tensor
    D_E: Tensor | None
    bias_E: Tensor | None
    sequence_M: Tensor | None
    softplus: Literal["none", "take", "taken"]
    log_decay: bool
    reverse: bool

    @property
    def states(self) -> int:
        return self.A_EN.shape[1]

    def arguments(self) -> tuple[Any, ...]:
        """The first ones of each kernel; B and C are loaded as one number."""
        return *rows(self.x_BME), *rows(self.step_BME), self.BC_BMN2.view(torch.int64), self.A_EN

    def constants(self) -> dict[str, Any]:
        return {"N": self.states, "REVERSE": self.reverse, "LOG_DECAY": self.log_decay, "SOFTPLUS": self.softplus}


class Gradients(NamedTuple):
    """float32 but for those of x and step, which have their dtypes; `dA_EN` is of A, whatever `log_decay` says."""

    dx_BME: Tensor
    dstep_BME: Tensor
    dBC_BMN2: Tensor
    dA_EN: Tensor
    dD_E: Tensor | None
    dbias_E: Tensor | None


def forward(
    scan: Scan,
    z_BME: Tensor | None = None,
    other_BME: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
    ungated: Tensor | None = None,
    states: Tensor | None = None,
) -> Tensor:
    """-> (scale (h C + D x) + other) silu(z), in `out` if given; `ungated` gets it without the gate, `states` the
    states with which chunks begin."""
    batch, tokens, width = scan.x_BME.shape
    channels = forward_channels(scan.states)
    out = torch.empty_like(scan.x_BME, memory_format=torch.contiguous_format) if out is None else out
    group, groups = grouping(tokens, batch * -(-width // channels))
    starts = None if groups == 1 else _group_starts(scan, group, groups)
    grid = -(-width // channels), groups, batch
    read = *scan.arguments(), scan.D_E, scan.bias_E, *rows(z_BME), other_BME, scan.sequence_M, starts
    given = *read, states, ungated, out, tokens, width, group, scale
    launch(scan_forward, grid, *given, CHANNELS=channels, CHUNK=layout.CHUNK, **scan.constants())
    return out


def backward(scan: Scan, grad_BME: Tensor, states_BKEN: Tensor) -> Gradients:
    """Of y = h C + D x, from a contiguous gradient."""
    if scan.states <= MOST_STATES:
        return _backward(scan, grad_BME, states_BKEN, scan.x_BME.dtype, scan.step_BME.dtype)
    # States do not see each other: gradients are sums over them, taken in float32.
    parts: list[Gradients] = []
    for first in range(0, scan.states, MOST_STATES):
        some = slice(first, first + MOST_STATES)
        part = scan._replace(
            BC_BMN2=scan.BC_BMN2[:, :, some].contiguous(),
            A_EN=scan.A_EN[:, some].contiguous(),
            D_E=scan.D_E if first == 0 else None,
        )
        grads = _backward(part, grad_BME, states_BKEN[..., some].contiguous(), torch.float32, torch.float32)
        if parts:  # not one large tensor a part
            grads = grads._replace(
                dx_BME=parts[-1].dx_BME.add_(grads.dx_BME), dstep_BME=parts[-1].dstep_BME.add_(grads.dstep_BME)
            )
        parts.append(grads)
    return Gradients(
        parts[-1].dx_BME.to(scan.x_BME.dtype),
        parts[-1].dstep_BME.to(scan.step_BME.dtype),
        torch.cat([part.dBC_BMN2 for part in parts], dim=2),
        torch.cat([part.dA_EN for part in parts], dim=1),
        parts[0].dD_E,
        None if parts[0].dbias_E is None else torch.stack([part.dbias_E for part in parts]).sum(0),
    )


def _backward(
    scan: Scan, grad_BME: Tensor, states_BKEN: Tensor, x_dtype: torch.dtype, step_dtype: torch.dtype
) -> Gradients:
    """Of at most MOST_STATES states; gradients of x and step are stored in these dtypes."""
    x_BME, (batch, tokens, width), N = scan.x_BME, scan.x_BME.shape, scan.states
    tiles = -(-width // BACKWARD_CHANNELS)
    group, groups = grouping(tokens, batch * tiles)
    starts = None if groups == 1 else _group_starts(scan, group, groups, grad_BME)
    programs = batch * groups
    dx_BME, dstep_BME = (x_BME.new_empty(x_BME.shape, dtype=dtype) for dtype in (x_dtype, step_dtype))

    def buffer(*shape: int) -> Tensor:
        return x_BME.new_empty(shape, dtype=torch.float32)

    dBC_parts, dA_parts = buffer(tiles, batch, tokens, N, 2), buffer(programs, width, N)
    dD_parts = None if scan.D_E is None else buffer(programs, width)
    no_bias = scan.bias_E is None and scan.softplus != "taken"
    dbias_parts = None if no_bias else buffer(programs, width)
    scratch = buffer(programs, tiles, layout.CHUNK // SPAN + 2, N, BACKWARD_CHANNELS)
    read = *scan.arguments(), scan.D_E, scan.bias_E, grad_BME, scan.sequence_M, states_BKEN, starts, scratch
    given = *read, dx_BME, dstep_BME, dBC_parts, dA_parts, dD_parts, dbias_parts, tokens, width, group
    sizes = {"CHANNELS": BACKWARD_CHANNELS, "CHUNK": layout.CHUNK, "SPAN": SPAN}
    launch(scan_backward, (tiles, groups, batch), *given, **sizes, **scan.constants())
    dD_E, dbias_E = (None if parts is None else parts.sum(0) for parts in (dD_parts, dbias_parts))
    return Gradients(dx_BME, dstep_BME, dBC_parts.sum(0), dA_parts.sum(0), dD_E, dbias_E)


def grouping(tokens: int, programs: int) -> tuple[int, int]:
    """-> tokens a group, and how many groups: one, if there are programs enough without."""
    chunks = -(-tokens // layout.CHUNK)
    groups = min(chunks, max(1, PROGRAMS // max(1, programs)))
    group = -(-chunks // groups)
    if -(-chunks // group) < 3:  # two groups take twice the exponentials for half the way: nothing won
        return chunks * layout.CHUNK, 1
    return group * layout.CHUNK, -(-chunks // group)


def _group_starts(scan: Scan, group: int, groups: int, grad_BME: Tensor | None = None) -> Tensor:
    """(B, groups, E, N): the state before each group, or with a gradient of y the adjoint state behind it."""
    batch, tokens, width = scan.x_BME.shape
    channels = forward_channels(scan.states)
    ends = scan.x_BME.new_empty(batch, groups, width, scan.states, dtype=torch.float32)
    decays = torch.empty_like(ends)
    size, adjoint = scan.states * width, grad_BME is not None
    grid = -(-width // channels), groups, batch
    scanned = scan if grad_BME is None else scan._replace(x_BME=grad_BME)
    given = *scanned.arguments(), scan.bias_E, scan.sequence_M, ends, decays, tokens, width, group
    launch(scan_ends, grid, *given, CHANNELS=channels, ADJOINT=adjoint, **scan.constants())
    launch(scan_starts, (-(-size // BLOCK), batch), ends, decays, groups, size, warps=4, BLOCK=BLOCK, ADJOINT=adjoint)
    return ends
