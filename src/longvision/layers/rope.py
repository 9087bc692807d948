"""Rotary position embeddings of a grid (arXiv 2104.09864, 2303.11331)."""

import torch
from torch import Tensor, nn

from longvision.errors import UserError

SIDE = 14  # over which positions are stretched, whatever the grid's side
# It looks at sizes that a symbolic trace does not know: it records the call.
torch.fx.wrap("rotations")


class Rotary(nn.Module):
    """Cosines and sines (M, D) for the patches of one grid, row by row, each angle twice, as released files hold them.

    Args:
        grid: rows and columns of patches.
        dim: width D; half of it turns by the row, half by the column.

    Raises:
        UserError: a grid that is not square.
    """

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        for name, table_MD in zip(("freqs_cos", "freqs_sin"), rotations(grid, dim, torch.empty(0))):
            self.register_buffer(name, table_MD)

    def forward(self, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """-> those of a grid, in `like`'s dtype. Raises as above."""
        return rotations(grid, self.dim, like)


def rotations(grid: tuple[int, int], dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """-> cosines and sines (M, D), see `Rotary`, where `like` is. Raises UserError for a grid that is not square."""
    rows, columns = grid
    if rows != columns:
        raise UserError(
            f"rotary positions are those of a square grid, and the image has {rows}x{columns} patches: take square "
            "images, or rope=False"
        )
    half = dim // 2
    frequency_F = 10000 ** (-torch.arange(0, half, 2, device=like.device, dtype=torch.float64) / half)
    place_S = torch.arange(rows, device=like.device, dtype=torch.float64) / rows * SIDE
    angle_SE = (place_S[:, None] * frequency_F).repeat_interleave(2, dim=1)
    row_SSE, column_SSE = angle_SE[:, None].expand(-1, rows, -1), angle_SE.expand(rows, -1, -1)
    angle_MD = torch.cat([row_SSE, column_SSE], dim=-1).flatten(0, 1)
    return angle_MD.cos().to(like.dtype), angle_MD.sin().to(like.dtype)


def rotated(x_BMD: Tensor, cos_MD: Tensor, sin_MD: Tensor) -> Tensor:
    """(B, M, D) -> (B, M, D): each two neighbouring channels turned by the angle of their token and place."""
    even_BMF, odd_BMF = x_BMD.unflatten(-1, (-1, 2)).unbind(-1)
    other_BMD = torch.stack((-odd_BMF, even_BMF), dim=-1).flatten(-2)
    return x_BMD * cos_MD + other_BMD * sin_MD
