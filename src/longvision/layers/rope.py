"""Rotary position embeddings of a grid (arXiv 2104.09864, 2303.11331)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

SIDE = 14  # over which positions are stretched, whatever the grid's sides
# It looks at sizes that a symbolic trace does not know: it records the call.
torch.fx.wrap("rotations")


class Rotary(nn.Module):
    """Cosines and sines (M, D) for the patches of one grid, row by row, each angle twice, as released files hold them.

    Args:
        grid: rows and columns of patches.
        dim: width D; half of it turns by the row, half by the column.
    """

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        for name, table_MD in zip(("freqs_cos", "freqs_sin"), rotations(grid, dim, torch.empty(0))):
            self.register_buffer(name, table_MD)

    def forward(self, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """-> those of a grid, in `like`'s dtype."""
        return rotations(grid, self.dim, like)


def rotations(grid: tuple[int, int], dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """-> cosines and sines (M, D), see `Rotary`, where `like` is, in its dtype."""
    dtype, half = torch.promote_types(like.dtype, torch.float32), dim // 2
    frequency_F = 10000 ** (-torch.arange(0, half, 2, device=like.device, dtype=dtype) / half)
    angles = [torch.arange(side, device=like.device, dtype=dtype)[:, None] / side * SIDE * frequency_F for side in grid]

    def table(function: Callable[[Tensor], Tensor]) -> Tensor:
        row_RE, column_CE = (function(angle_SF).repeat_interleave(2, dim=1) for angle_SF in angles)
        row_RCE, column_RCE = row_RE[:, None].expand(-1, grid[1], -1), column_CE.expand(grid[0], -1, -1)
        return torch.cat([row_RCE, column_RCE], dim=-1).flatten(0, 1).to(like.dtype)

    return table(torch.cos), table(torch.sin)


def rotated(x_BMD: Tensor, cos_MD: Tensor, sin_MD: Tensor) -> Tensor:
    """(B, M, D) -> (B, M, D): each two neighbouring channels turned by the angle of their token and place."""
    even_BMF, odd_BMF = x_BMD.unflatten(-1, (-1, 2)).unbind(-1)
    other_BMD = torch.stack((-odd_BMF, even_BMF), dim=-1).flatten(-2)
    return x_BMD * cos_MD + other_BMD * sin_MD
