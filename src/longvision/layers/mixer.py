"""The bidirectional selective-scan mixer: what stands in Vim where a transformer has attention."""

import math
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers.plain import (
    TAPS,
    anybody_watches,
    as_call,
    as_call_and_bias,
    check_filter,
    convolved,
    is_filter,
    is_weight,
    runs_fused,
)
from longvision.layers.scan_init import init_scan
from longvision.ops import ScanDirection, causal_conv1d, mixer, selective_scan
from longvision.ops.causal_conv1d.reference import causal_conv1d_reference
from longvision.ops.mixer import reference
from longvision.ops.selective_scan.parallel import selective_scan_parallel

Direction = Literal["none", "sequence", "layer", "ssm", "ssm_conv"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


class Branch(NamedTuple):
    """One direction of the scan, as the layers that it owns."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    D: Tensor
    A_log: Tensor
    reverse: bool

    def scan_direction(self) -> ScanDirection:
        conv1d, x_proj, dt_proj, D, A_log, reverse = self
        projections = x_proj.weight, dt_proj.weight, dt_proj.bias
        return ScanDirection(conv1d.weight, conv1d.bias, *projections, A_log, D, reverse)  # type: ignore[arg-type]

    def scanned(self, x_BME: Tensor, mixer: nn.Module, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, E) -> (B, M, E), the layers called one by one. `mixer` is what they belong to."""
        fused = runs_fused(mixer, x_BME)
        if is_filter(self.conv1d) and not anybody_watches():
            convolve = causal_conv1d if fused else causal_conv1d_reference
            filter_EK = self.conv1d.weight.squeeze(1)
            u_BME = convolve(x_BME, filter_EK, self.conv1d.bias, True, self.reverse, cu_seqlens)
        else:
            u_BME = convolved(self.conv1d, x_BME, self.reverse, cu_seqlens)
        scan = selective_scan if fused else selective_scan_parallel
        dt_proj, dt_bias_E = as_call_and_bias(self.dt_proj)
        return reference.scanned(
            u_BME,
            as_call(self.x_proj, reference.without_overflow),
            dt_proj,
            (mixer.rank, mixer.state),  # type: ignore[arg-type]
            self.A_log,
            self.D,
            dt_bias_E,
            partial(scan, reverse=self.reverse, cu_seqlens=cu_seqlens),
        )


class VimMixer(nn.Module):
    """(B, M, D) -> (B, M, D). Lines 3-20 of Algorithm 1, arXiv 2401.09417.

    Parameters bear the names of the released checkpoints; those of the backward direction end in `_b`.

    Args:
        dim: model width D; the inner width E is twice that.
        state: states a channel, N.
        direction: "ssm_conv", the paper's: both directions, each with a convolution, projections and an SSM of its
            own. "ssm": both directions share all but the decay rates A. Any other: one direction.
        reverse: with one direction, scan from the last token to the first.

    Raises:
        UserError: an unknown direction.
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        direction: Direction = "ssm_conv",
        reverse: bool = False,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise UserError(f"direction={direction!r} is unknown: choose one of {', '.join(DIRECTIONS)}")
        self.direction, self.reverse = direction, reverse
        self.inner, self.rank, self.state = 2 * dim, math.ceil(dim / 16), state
        self.fused = True  # see `set_fused`

        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        own = partial(own_parameters, self.inner, self.rank, state)
        self.conv1d, self.x_proj, self.dt_proj, self.D = own()
        self.A_log = nn.Parameter(torch.empty(self.inner, state))
        if direction == "ssm_conv":
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b = own()
        if direction in ("ssm", "ssm_conv"):
            self.A_b_log = nn.Parameter(torch.empty(self.inner, state))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's initialisation, for both directions alike."""
        for own in self.scan_directions():
            init_scan(own.A_log_EN, own.D_E, own.dt_proj_ER, own.dt_bias_E)

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D); `cu_seqlens` as in `longvision.ops.selective_scan`.

        Raises:
            ValueError: conv1d has a setting that a causal depthwise convolution does not have.
        """
        directions = self.directions_to_read() if runs_fused(self, x_BMD) else None
        if directions is not None:
            return mixer(x_BMD, directions, self.in_proj.weight, self.out_proj.weight, cu_seqlens=cu_seqlens)
        along = [partial(branch.scanned, mixer=self, cu_seqlens=cu_seqlens) for branch in self._branches()]
        return reference.between(x_BMD, as_call(self.in_proj), along, as_call(self.out_proj))

    def directions_to_read(self) -> list[ScanDirection] | None:
        """The directions for a fused op, which reads the layers' weights; None where the layers are to be called:
        unfused, or with an adapter or a hook on one of them.

        Raises:
            ValueError: conv1d has a setting that a causal depthwise convolution does not have.
        """
        if not self.fused or anybody_watches() or not (is_weight(self.in_proj) and is_weight(self.out_proj)):
            return None
        branches = self._branches()
        for own in branches:
            if not (is_filter(own.conv1d) and is_weight(own.x_proj) and is_weight(own.dt_proj, bias=True)):
                return None
        return [own.scan_direction() for own in branches]

    def scan_directions(self) -> list[ScanDirection]:
        """The directions in which the tokens are scanned, each with its parameters."""
        return [own.scan_direction() for own in self._branches()]

    def _branches(self) -> list[Branch]:
        check_filter("conv1d", self.conv1d)
        forth = self.conv1d, self.x_proj, self.dt_proj, self.D
        if self.direction == "ssm_conv":
            check_filter("conv1d_b", self.conv1d_b)
            back = self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b
            return [Branch(*forth, self.A_log, False), Branch(*back, self.A_b_log, True)]
        if self.direction == "ssm":
            return [Branch(*forth, self.A_log, False), Branch(*forth, self.A_b_log, True)]
        return [Branch(*forth, self.A_log, self.reverse)]


def own_parameters(inner: int, rank: int, state: int) -> tuple[nn.Conv1d, nn.Linear, nn.Linear, nn.Parameter]:
    """What a branch owns beside its decay rates, in the order in which `Branch` has them."""
    conv1d = nn.Conv1d(inner, inner, TAPS, groups=inner)
    x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
    return conv1d, x_proj, nn.Linear(rank, inner), nn.Parameter(torch.empty(inner))
