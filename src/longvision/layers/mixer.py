"""The bidirectional selective-scan mixer: what stands in Vim where a transformer has attention."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.ops import causal_conv1d, selective_scan

Direction = Literal["none", "sequence", "layer", "ssm", "ssm_conv"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

TAPS = 4  # of the convolution


class VimMixer(nn.Module):
    """(B, M, D) -> (B, M, D). Lines 3-20 of Algorithm 1, arXiv 2401.09417.

    Parameters bear the names of the released checkpoints; those of the backward direction end in `_b`.

    Args:
        dim: model width D.
        expand: inner width E as a multiple of D.
        state: states a channel, N.
        direction: "ssm_conv", the paper's: both directions, each with a convolution, projections and an SSM of its
            own. "ssm": both directions share all but the decay rates A. Any other: one direction.
        reverse: with one direction, walk from the last token to the first.

    Raises:
        ValueError: an unknown direction.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        state: int = 16,
        direction: Direction = "ssm_conv",
        reverse: bool = False,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction={direction!r} is unknown: choose one of {', '.join(DIRECTIONS)}")
        self.direction, self.reverse = direction, reverse
        self.inner, self.rank, self.state = expand * dim, math.ceil(dim / 16), state

        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv1d, self.x_proj, self.dt_proj, self.D = self._walk_parameters()
        self.A_log = nn.Parameter(torch.empty(self.inner, state))
        if direction == "ssm_conv":
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b = self._walk_parameters()
        if direction in ("ssm", "ssm_conv"):
            self.A_b_log = nn.Parameter(torch.empty(self.inner, state))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.reset_parameters()

    def _walk_parameters(self) -> tuple[nn.Conv1d, nn.Linear, nn.Linear, nn.Parameter]:
        """What a direction owns beside its decay rates."""
        conv1d = nn.Conv1d(self.inner, self.inner, TAPS, groups=self.inner)  # holds the filter only
        x_proj = nn.Linear(self.inner, self.rank + 2 * self.state, bias=False)
        return conv1d, x_proj, nn.Linear(self.rank, self.inner), nn.Parameter(torch.empty(self.inner))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Mamba's initialisation (arXiv 2312.00752, section 3.6), for both directions alike."""
        for walk in self._walks():
            walk.A_log.copy_(torch.arange(1.0, self.state + 1).log().expand_as(walk.A_log))
            walk.D.fill_(1)
            nn.init.uniform_(walk.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            # softplus(bias) is log-uniform in [0.001, 0.1]: x + log(1 - exp(-x)) is softplus's inverse.
            step = torch.empty_like(walk.dt_proj.bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            walk.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D); `cu_seqlens` as in `longvision.ops.selective_scan`."""
        x_BME, z_BME = self.in_proj(x_BMD).chunk(2, dim=-1)
        walks = list(self._walks())
        # Each is weighed before they are summed: near the largest half-precision number the sum overflows, the
        # mean does not.
        y_BME = sum(walk(x_BME, cu_seqlens) / len(walks) for walk in walks)
        return self.out_proj(y_BME * F.silu(z_BME))

    def _walks(self) -> Iterator["_Walk"]:
        """The directions in which the tokens are walked, each with its parameters."""
        own = self.conv1d, self.x_proj, self.dt_proj, self.D
        if self.direction == "ssm_conv":
            yield _Walk(*own, self.A_log, False)
            yield _Walk(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b, self.A_b_log, True)
        elif self.direction == "ssm":
            yield _Walk(*own, self.A_log, False)
            yield _Walk(*own, self.A_b_log, True)
        else:
            yield _Walk(*own, self.A_log, self.reverse)


class _Walk(NamedTuple):
    """One direction through the tokens."""

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    D: nn.Parameter
    A_log: nn.Parameter
    reverse: bool

    def __call__(self, x_BME: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """(B, M, E) -> (B, M, E): convolution, then the scan with step, B and C made from its output."""
        rank, state = self.dt_proj.in_features, self.A_log.shape[1]
        filter_EK = self.conv1d.weight.squeeze(1)
        x_BME = causal_conv1d(
            x_BME, filter_EK, self.conv1d.bias, silu=True, reverse=self.reverse, cu_seqlens=cu_seqlens
        )
        low_BMR, B_BMN, C_BMN = self.x_proj(x_BME).split([rank, state, state], dim=-1)
        return selective_scan(
            x_BME,
            F.linear(low_BMR, self.dt_proj.weight),  # its bias is added in float32, inside the scan
            -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32))),
            B_BMN,
            C_BMN,
            self.D,
            delta_bias_E=self.dt_proj.bias,
            delta_softplus=True,
            reverse=self.reverse,
            cu_seqlens=cu_seqlens,
        )
