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


class _Own(NamedTuple):
    """What one direction of the scan owns."""

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
        self.conv1d, self.x_proj, self.dt_proj, self.D = self._own_parameters()
        self.A_log = nn.Parameter(torch.empty(self.inner, state))
        if direction == "ssm_conv":
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b = self._own_parameters()
        if direction in ("ssm", "ssm_conv"):
            self.A_b_log = nn.Parameter(torch.empty(self.inner, state))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.reset_parameters()

    def _own_parameters(self) -> tuple[nn.Conv1d, nn.Linear, nn.Linear, nn.Parameter]:
        """What a direction owns beside its decay rates."""
        conv1d = nn.Conv1d(self.inner, self.inner, TAPS, groups=self.inner)
        x_proj = nn.Linear(self.inner, self.rank + 2 * self.state, bias=False)
        return conv1d, x_proj, nn.Linear(self.rank, self.inner), nn.Parameter(torch.empty(self.inner))

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
        along = [partial(self._along, own, cu_seqlens) for own in self._owns()]
        return reference.between(x_BMD, as_call(self.in_proj), along, as_call(self.out_proj))

    def _along(self, own: _Own, cu_seqlens: Tensor | None, x_BME: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, E): one direction, its layers called one by one."""
        if is_filter(own.conv1d) and not anybody_watches():
            convolve = causal_conv1d if runs_fused(self, x_BME) else causal_conv1d_reference
            filter_EK = own.conv1d.weight.squeeze(1)
            u_BME = convolve(x_BME, filter_EK, own.conv1d.bias, True, own.reverse, cu_seqlens)
        else:
            u_BME = convolved(own.conv1d, x_BME, own.reverse, cu_seqlens)
        scan = selective_scan if runs_fused(self, x_BME) else selective_scan_parallel
        dt_proj, dt_bias_E = as_call_and_bias(own.dt_proj)
        return reference.scanned(
            u_BME,
            as_call(own.x_proj, reference.without_overflow),
            dt_proj,
            (self.rank, self.state),
            own.A_log,
            own.D,
            dt_bias_E,
            partial(scan, reverse=own.reverse, cu_seqlens=cu_seqlens),
        )

    def directions_to_read(self) -> list[ScanDirection] | None:
        """The directions for a fused op, which reads the layers' weights; None where the layers are to be called:
        unfused, or with an adapter or a hook on one of them.

        Raises:
            ValueError: conv1d has a setting that a causal depthwise convolution does not have.
        """
        if not self.fused or anybody_watches() or not (is_weight(self.in_proj) and is_weight(self.out_proj)):
            return None
        owns = self._owns()
        for own in owns:
            if not (is_filter(own.conv1d) and is_weight(own.x_proj) and is_weight(own.dt_proj, bias=True)):
                return None
        return [own.scan_direction() for own in owns]

    def scan_directions(self) -> list[ScanDirection]:
        """The directions in which the tokens are scanned, each with its parameters."""
        return [own.scan_direction() for own in self._owns()]

    def _owns(self) -> list[_Own]:
        check_filter("conv1d", self.conv1d)
        forth = self.conv1d, self.x_proj, self.dt_proj, self.D
        if self.direction == "ssm_conv":
            check_filter("conv1d_b", self.conv1d_b)
            back = self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b
            return [_Own(*forth, self.A_log, False), _Own(*back, self.A_b_log, True)]
        if self.direction == "ssm":
            return [_Own(*forth, self.A_log, False), _Own(*forth, self.A_b_log, True)]
        return [_Own(*forth, self.A_log, self.reverse)]
