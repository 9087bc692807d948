"""VMamba's mixer: a selective scan of an image in four directions (arXiv 2401.10166)."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.layers.attention import LayerNorm
from longvision.layers.maps import MapConv2d
from longvision.layers.plain import runs_fused
from longvision.layers.scan_init import init_scan
from longvision.ops import cross_scan
from longvision.ops.common import widened
from longvision.ops.cross_scan.reference import DIRECTIONS, cross_scan_reference
from longvision.ops.mixer.reference import without_overflow
from longvision.ops.selective_scan.parallel import selective_scan_parallel

# What they do depends on dtypes, which a symbolic trace does not know: it records the calls.
torch.fx.wrap("widened")
torch.fx.wrap("without_overflow")


class SS2D(nn.Module):
    """(B, H, W, D) -> (B, H, W, D). What stands in VMamba where a transformer has attention.

    Parameters bear the names and shapes of the released checkpoints.

    Args:
        dim: D.
        inner: width of what is scanned, E.
        state: states a channel, N.
        gated: as in VMamba's first version: the output is multiplied by a gate, and the convolution has a bias.
    """

    def __init__(self, dim: int, inner: int, state: int = 1, gated: bool = False) -> None:
        super().__init__()
        self.inner, self.state, self.rank, self.gated = inner, state, math.ceil(dim / 16), gated
        self.fused = True  # see `set_fused`
        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False)
        self.conv2d = MapConv2d(inner, inner, 3, padding=1, groups=inner, bias=gated)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, self.rank + 2 * state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(DIRECTIONS, inner))
        self.A_logs = nn.Parameter(torch.empty(DIRECTIONS * inner, state))
        self.Ds = nn.Parameter(torch.empty(DIRECTIONS * inner))
        self.out_norm = LayerNorm(inner, 1e-5)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's, in each direction, of what is no layer of torch."""
        init_scan(self.A_logs, self.Ds, self.dt_projs_weight, self.dt_projs_bias)
        nn.init.uniform_(self.x_proj_weight, -(self.inner**-0.5), self.inner**-0.5)  # as nn.Linear begins

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        x_BHWE = self.in_proj(x_BHWD)
        if not self.gated:
            return self.out_proj(self.out_norm(self._mixed(x_BHWE)))
        x_BHWE, z_BHWE = x_BHWE.chunk(2, dim=-1)
        return self.out_proj(self.out_norm(self._mixed(x_BHWE)) * F.silu(z_BHWE))

    def _mixed(self, x_BHWE: Tensor) -> Tensor:
        """(B, H, W, E) -> (B, H, W, E): a convolution of each channel, then the four scans, summed."""
        grid = x_BHWE.shape[1], x_BHWE.shape[2]
        u_BME = F.silu(self.conv2d(x_BHWE)).flatten(1, 2)
        delta_BMKE, B_BMKN, C_BMKN = self._projected(u_BME)
        A_KEN = -torch.exp(widened(self.A_logs)).unflatten(0, (DIRECTIONS, -1))
        D_KE = self.Ds.unflatten(0, (DIRECTIONS, -1))
        scan = cross_scan if runs_fused(self, x_BHWE) else partial(cross_scan_reference, scan=_in_plain_torch)
        y_BME = scan(u_BME, delta_BMKE, A_KEN, B_BMKN, C_BMKN, D_KE, self.dt_projs_bias, grid)
        return y_BME.unflatten(1, grid)

    def _projected(self, u_BME: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, M, E) -> steps without their bias (B, M, 4, E), and B and C (B, M, 4, N): pixel by pixel, in whatever
        order they are scanned."""
        found_BMKP = without_overflow(self.x_proj_weight.flatten(0, 1), u_BME).unflatten(2, (DIRECTIONS, -1))
        low_BMKR, B_BMKN, C_BMKN = found_BMKP.split([self.rank, self.state, self.state], dim=-1)
        low_KNR = low_BMKR.to(u_BME.dtype).flatten(0, 1).transpose(0, 1)
        delta_KBME = (low_KNR @ self.dt_projs_weight.mT).unflatten(1, (-1, u_BME.shape[1]))
        return delta_KBME.permute(1, 2, 0, 3), B_BMKN, C_BMKN


def _in_plain_torch(*arguments: Any) -> Tensor:
    """As the reference calls a scan, which has a place for a gate behind D."""
    return selective_scan_parallel(*arguments[:6], *arguments[7:])
