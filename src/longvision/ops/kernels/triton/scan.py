"""The selective scan on Triton kernels: which are started, over which grids, and with which buffers."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longvision.ops.kernels.triton import layout
from longvision.ops.kernels.triton.launch import launch, rows
from longvision.ops.kernels.triton.scan_backward import scan_backward
from longvision.ops.kernels.triton.scan_forward import scan_forward
from longvision.ops.kernels.triton.scan_segments import scan_ends, scan_starts

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

    `x_BME` and `step_BME` have contiguous channels; `BC_BMN2` is float32, B and C side by side, or (B, M, G, N, 2) of G
    groups of channels; `A_EN` is contiguous, or with `log_decay` log(-A). `sequence_M` numbers the packed sequence of
    each token, int32. The step is `step_BME` plus bias, or softplus of that, which the kernels "take" or somebody has
    "taken": it is of interest for the gradients, which are then of what softplus was taken of. The pixels of a `grid`
    go column by column.
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
    grid: tuple[int, int] | None = None

    @property
    def states(self) -> int:
        return self.A_EN.shape[1]

    @property
    def groups(self) -> int:
        """Of channels, each with B and C of its own."""
        return 1 if self.BC_BMN2.ndim == 4 else self.BC_BMN2.shape[2]

    def tiles(self, channels: int) -> int:
        """Of so many channels, none of which are of two groups."""
        return self.groups * -(-(self.x_BME.shape[2] // self.groups) // channels)

    def sizes(self) -> tuple[int | None, ...]:
        """tokens, width, group_width, rows, columns of each kernel."""
        _, tokens, width = self.x_BME.shape
        group_width = None if self.BC_BMN2.ndim == 4 else width // self.groups
        return tokens, width, group_width, *(self.grid or (None, None))

    def arguments(self) -> tuple[Any, ...]:
        """The first ones of each kernel; B and C are loaded as one number, and lie as a row of them for each token."""
        return *rows(self.x_BME), *rows(self.step_BME), self.BC_BMN2.flatten(2).view(torch.int64), self.A_EN

    def constants(self) -> dict[str, Any]:
        return {"N": self.states, "REVERSE": self.reverse, "LOG_DECAY": self.log_decay, "SOFTPLUS": self.softplus}


class Gradients(NamedTuple):
    """float32 but for those of x and step, which have their dtypes; `dA_EN` is of A, whatever `log_decay` says;
    `dinitial_BEN` of the state before the first token."""

    dx_BME: Tensor
    dstep_BME: Tensor
    dBC_BMN2: Tensor
    dA_EN: Tensor
    dD_E: Tensor | None
    dbias_E: Tensor | None
    dinitial_BEN: Tensor | None


def forward(
    scan: Scan,
    z_BME: Tensor | None = None,
    other_BME: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
    ungated: Tensor | None = None,
    states: Tensor | None = None,
    initial_BEN: Tensor | None = None,
    last_BEN: Tensor | None = None,
) -> Tensor:
    """-> (scale (h C + D x) + other) silu(z), in `out` if given; `ungated` gets it without the gate, `states` the
    states with which chunks begin, `last_BEN` the one behind the last token. The one before the first is
    `initial_BEN`, contiguous and in float32, or zero."""
    batch, tokens, _ = scan.x_BME.shape
    channels = forward_channels(scan.states)
    tiles = scan.tiles(channels)
    out = torch.empty_like(scan.x_BME, memory_format=torch.contiguous_format) if out is None else out
    segment_tokens, segments = segmented(tokens, batch * tiles)
    starts = initial_BEN if segments == 1 else _segment_starts(scan, segment_tokens, segments, initial_BEN)
    read = *scan.arguments(), scan.D_E, scan.bias_E, *rows(z_BME), other_BME, scan.sequence_M, starts
    given = *read, states, last_BEN, ungated, out, *scan.sizes(), segment_tokens, scale
    constants = {"CHANNELS": channels, "CHUNK": layout.CHUNK, **scan.constants()}
    launch(scan_forward, (tiles, segments, batch), *given, **constants)
    return out


def backward(
    scan: Scan,
    grad_BME: Tensor,
    states_BKEN: Tensor,
    grad_last_BEN: Tensor | None = None,
    of_initial: bool = False,
) -> Gradients:
    """Of y = h C + D x and of the last state, from contiguous gradients; if asked, that of the initial state too."""
    if scan.states <= MOST_STATES:
        dtypes = scan.x_BME.dtype, scan.step_BME.dtype
        return _backward(scan, grad_BME, states_BKEN, grad_last_BEN, of_initial, *dtypes)
    # States do not see each other: gradients are sums over them, taken in float32.
    parts: list[Gradients] = []
    for first in range(0, scan.states, MOST_STATES):
        some = slice(first, first + MOST_STATES)
        part = scan._replace(
            BC_BMN2=scan.BC_BMN2[..., some, :].contiguous(),
            A_EN=scan.A_EN[:, some].contiguous(),
            D_E=scan.D_E if first == 0 else None,
        )
        last_BEN = None if grad_last_BEN is None else grad_last_BEN[..., some].contiguous()
        states = states_BKEN[..., some].contiguous()
        grads = _backward(part, grad_BME, states, last_BEN, of_initial, torch.float32, torch.float32)
        if parts:  # not one large tensor a part
            grads = grads._replace(
                dx_BME=parts[-1].dx_BME.add_(grads.dx_BME), dstep_BME=parts[-1].dstep_BME.add_(grads.dstep_BME)
            )
        parts.append(grads)
    return Gradients(
        parts[-1].dx_BME.to(scan.x_BME.dtype),
        parts[-1].dstep_BME.to(scan.step_BME.dtype),
        torch.cat([part.dBC_BMN2 for part in parts], dim=-2),
        torch.cat([part.dA_EN for part in parts], dim=1),
        parts[0].dD_E,
        None if parts[0].dbias_E is None else torch.stack([part.dbias_E for part in parts]).sum(0),
        torch.cat([part.dinitial_BEN for part in parts], dim=-1) if of_initial else None,
    )


def _backward(
    scan: Scan,
    grad_BME: Tensor,
    states_BKEN: Tensor,
    grad_last_BEN: Tensor | None,
    of_initial: bool,
    x_dtype: torch.dtype,
    step_dtype: torch.dtype,
) -> Gradients:
    """Of at most MOST_STATES states; gradients of x and step are stored in these dtypes."""
    x_BME, (batch, tokens, width), N = scan.x_BME, scan.x_BME.shape, scan.states
    tiles = scan.tiles(BACKWARD_CHANNELS)
    segment_tokens, segments = segmented(tokens, batch * tiles)
    starts = grad_last_BEN
    if segments > 1:
        starts = _segment_starts(scan, segment_tokens, segments, grad_last_BEN, grad_BME)
    programs = batch * segments
    dx_BME, dstep_BME = (x_BME.new_empty(x_BME.shape, dtype=dtype) for dtype in (x_dtype, step_dtype))

    def buffer(*shape: int) -> Tensor:
        return x_BME.new_empty(shape, dtype=torch.float32)

    dBC_parts, dA_parts = buffer(tiles, batch, tokens, N, 2), buffer(programs, width, N)
    dD_parts = None if scan.D_E is None else buffer(programs, width)
    no_bias = scan.bias_E is None and scan.softplus != "taken"
    dbias_parts = None if no_bias else buffer(programs, width)
    dinitial_BEN = buffer(batch, width, N) if of_initial else None
    scratch = buffer(programs, tiles, layout.CHUNK // SPAN + 2, N, BACKWARD_CHANNELS)
    read = *scan.arguments(), scan.D_E, scan.bias_E, grad_BME, scan.sequence_M, states_BKEN, starts, scratch
    written = dx_BME, dstep_BME, dBC_parts, dA_parts, dD_parts, dbias_parts, dinitial_BEN
    sizes = {"CHANNELS": BACKWARD_CHANNELS, "CHUNK": layout.CHUNK, "SPAN": SPAN}
    given = *read, *written, *scan.sizes(), segment_tokens
    launch(scan_backward, (tiles, segments, batch), *given, **sizes, **scan.constants())
    dD_E, dbias_E = (None if parts is None else parts.sum(0) for parts in (dD_parts, dbias_parts))
    if scan.BC_BMN2.ndim == 4:
        dBC_BMN2 = dBC_parts.sum(0)
    else:
        dBC_BMN2 = dBC_parts.unflatten(0, (scan.groups, -1)).sum(1).permute(1, 2, 0, 3, 4)
    return Gradients(dx_BME, dstep_BME, dBC_BMN2, dA_parts.sum(0), dD_E, dbias_E, dinitial_BEN)


def segmented(tokens: int, programs: int) -> tuple[int, int]:
    """-> tokens a segment, and how many segments: one, if there are programs enough without."""
    chunks = -(-tokens // layout.CHUNK)
    segments = min(chunks, max(1, PROGRAMS // max(1, programs)))
    own = -(-chunks // segments)
    if -(-chunks // own) < 3:  # two segments take twice the exponentials for half the way: nothing won
        return chunks * layout.CHUNK, 1
    return own * layout.CHUNK, -(-chunks // own)


def _segment_starts(
    scan: Scan, segment_tokens: int, segments: int, first_BEN: Tensor | None, grad_BME: Tensor | None = None
) -> Tensor:
    """(B, segments, E, N): the state before each segment, or with a gradient of y the adjoint state behind it; of the
    segment that comes first it is `first_BEN`, or zero."""
    batch, _, width = scan.x_BME.shape
    channels = forward_channels(scan.states)
    ends = scan.x_BME.new_empty(batch, segments, width, scan.states, dtype=torch.float32)
    decays = torch.empty_like(ends)
    size, adjoint = scan.states * width, grad_BME is not None
    grid = scan.tiles(channels), segments, batch
    scanned = scan if grad_BME is None else scan._replace(x_BME=grad_BME)
    given = *scanned.arguments(), scan.bias_E, scan.sequence_M, ends, decays, *scan.sizes(), segment_tokens
    launch(scan_ends, grid, *given, CHANNELS=channels, ADJOINT=adjoint, **scan.constants())
    given = ends, decays, first_BEN, segments, size
    launch(scan_starts, (-(-size // BLOCK), batch), *given, warps=4, BLOCK=BLOCK, ADJOINT=adjoint)
    return ends
