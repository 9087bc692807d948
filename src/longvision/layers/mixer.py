"""The bidirectional selective-scan mixer: what stands in Vim where a transformer has attention."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from longvision.layers.bare import is_bare
from longvision.ops import Walk, mamba_inner

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
        for walk in self.walks():
            walk.A_log_EN.copy_(torch.arange(1.0, self.state + 1).log().expand_as(walk.A_log_EN))
            walk.D_E.fill_(1)
            nn.init.uniform_(walk.dt_proj_ER, -(self.rank**-0.5), self.rank**-0.5)
            # softplus(bias) is log-uniform in [0.001, 0.1]: x + log(1 - exp(-x)) is softplus's inverse.
            step = torch.empty_like(walk.dt_bias_E).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            walk.dt_bias_E.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D); `cu_seqlens` as in `longvision.ops.selective_scan`."""
        # Projections that are no more than their weights are part of the op, which then keeps less for the backward.
        before, in_weight = _call_or_weight(self.in_proj)
        after, out_weight = _call_or_weight(self.out_proj)
        return after(mamba_inner(before(x_BMD), self.walks(), in_weight, out_weight, cu_seqlens))

    def walks(self) -> list[Walk]:
        """The directions in which the tokens are walked, each with its parameters."""
        own = self.conv1d, self.x_proj, self.dt_proj, self.D
        if self.direction == "ssm_conv":
            backward = self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b
            return [_walk(*own, self.A_log, False), _walk(*backward, self.A_b_log, True)]
        if self.direction == "ssm":
            return [_walk(*own, self.A_log, False), _walk(*own, self.A_b_log, True)]
        return [_walk(*own, self.A_log, self.reverse)]


def _walk(conv1d: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, D: Tensor, A_log: Tensor, reverse: bool) -> Walk:
    for name, module, bias in (("x_proj", x_proj, False), ("dt_proj", dt_proj, True)):
        if not is_bare(module, nn.Linear) or (module.bias is not None) != bias:
            raise ValueError(
                f"VimMixer reads the weights of {name} without calling it, and it is a {type(module).__name__} with an "
                "adapter, a hook or another bias, which would do nothing: adapt in_proj or out_proj, which are called"
            )
    assert conv1d.bias is not None
    filter_EK = conv1d.weight.squeeze(1)
    return Walk(filter_EK, conv1d.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, A_log, D, reverse)


def _call_or_weight(projection: nn.Linear) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """-> what to call, and the weight to hand on: one of the two does something."""
    if is_bare(projection, nn.Linear) and projection.bias is None:
        return _unchanged, projection.weight
    return projection, None


def _unchanged(x_BMD: Tensor) -> Tensor:
    return x_BMD
