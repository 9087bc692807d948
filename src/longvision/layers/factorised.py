"""Position embeddings of the row plus those of the column, for images of any shape (NaViT, arXiv 2307.06304)."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers.positions import per_patch, starts_of
from longvision.layers.tokens import ClassTokens
from longvision.ops.common import widened

Factorised = Literal[
    "factorised_learned",
    "factorised_sinusoidal",
    "factorised_fourier",
    "fractional_learned",
    "fractional_sinusoidal",
    "fractional_fourier",
]
FACTORISED: tuple[Factorised, ...] = get_args(Factorised)


class FactorisedPositions(nn.Module):
    """An embedding for each row and one for each column of a grid of patches, added: no table for each grid.

    "factorised" embeds the number of the row or column, counted from 0, "fractional" how far it is along the image,
    from 0 to 1. "learned": a table as long as the side of `grid`, between whose entries is interpolated; a number
    beyond its end stretches it over the image. "sinusoidal": half of the channels for rows, half for columns, with
    the frequencies of arXiv 1706.03762, of fractions over one period as in DETR (arXiv 2005.12872); no parameters.
    "fourier": sines and cosines at learned frequencies (arXiv 2006.10739), projected.

    Class tokens have no position: they are learned themselves.

    Args:
        kind: one of `FACTORISED`.
        dim: model width D.
        grid: rows and columns of patches for which tables are held.

    Raises:
        UserError: a width that the sines do not divide.
    """

    def __init__(self, kind: Factorised, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        schema, self.function = kind.split("_")
        self.fractional, self.dim = schema == "fractional", dim
        if self.function != "learned" and dim % 4:
            raise UserError(f"positions={kind!r} with embed_dim {dim}: expected a width that 4 divides")
        if self.function == "learned":
            self.rows, self.columns = (nn.Parameter(torch.empty(side, dim)) for side in grid)
        elif self.function == "fourier":
            self.frequencies = nn.Parameter(torch.empty(2, dim // 2))
            self.proj = nn.Parameter(torch.empty(2, dim, dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Frequencies of a few periods an image, or in sixteen patches."""
        for name, parameter in self.named_parameters():
            if name == "frequencies":
                parameter.normal_(std=4 if self.fractional else 4 / 16)
            else:
                trunc_normal_(parameter, std=0.02)

    def along(self, axis: int, sides: Sequence[int], device: torch.device) -> Tensor:
        """(sum of sides, D), float32 or better: of all rows (axis 0) or columns (1) of images with that many."""
        if self.function == "learned":
            return interpolated(self._table(axis), sides, self.fractional)
        places = [(i + 0.5) / side if self.fractional else i for side in sides for i in range(side)]
        place_N1 = torch.tensor(places, dtype=torch.float32).to(device)[:, None]
        if self.function == "sinusoidal":
            exponents = torch.arange(self.dim // 4, device=device) / (self.dim // 4)
            waves = _waves(place_N1 * (2 * math.pi if self.fractional else 1) * 10_000**-exponents)
            return F.pad(waves, (0, self.dim // 2) if axis == 0 else (self.dim // 2, 0))
        return _waves(2 * math.pi * place_N1 * widened(self.frequencies[axis])) @ widened(self.proj[axis])

    def _table(self, axis: int) -> Tensor:
        return self.columns if axis else self.rows

    def packed(self, grids: Sequence[tuple[int, int]], number_M: Tensor, lengths: Sequence[int]) -> Tensor:
        """(M, D): of the patches with these numbers in their images' grids, `lengths` of them in each image."""
        device = number_M.device
        rows, columns = ([grid[axis] for grid in grids] for axis in (0, 1))
        width_M, row_M, column_M = (
            per_patch(values, lengths, device) for values in (columns, starts_of(rows), starts_of(columns))
        )
        row_M, column_M = row_M + number_M // width_M, column_M + number_M % width_M
        return F.embedding(row_M, self.along(0, rows, device)) + F.embedding(column_M, self.along(1, columns, device))

    @torch.no_grad()
    def resize(self, grid: tuple[int, int]) -> None:
        """Hold tables for that grid from now on, interpolated from those held."""
        if self.function == "learned":
            for name, side in zip(("rows", "columns"), grid):
                table = getattr(self, name)
                resized = interpolated(table, [side], self.fractional).to(table.dtype)
                setattr(self, name, nn.Parameter(resized, requires_grad=table.requires_grad))


def interpolated(table_LD: Tensor, sides: Sequence[int], fractional: bool) -> Tensor:
    """(L, D) -> (sum of sides, D), in float32 or better: the table for images with so many rows, or columns.

    Fractions, and numbers where there are more than L, stretch the table over the image, linearly; else these are the
    table's first entries.
    """
    held = table_LD.shape[0]
    places = []
    for side in sides:
        stretched = fractional or side > held
        places += [min(max((i + 0.5) * held / side - 0.5, 0), held - 1) if stretched else i for i in range(side)]
    low, device = [int(place) for place in places], table_LD.device
    low_N, high_N = torch.tensor(low).to(device), torch.tensor([min(i + 1, held - 1) for i in low]).to(device)
    share_N = torch.tensor([place - i for place, i in zip(places, low)], dtype=torch.float32).to(device)
    table_LD = widened(table_LD)
    low_ND, high_ND = F.embedding(low_N, table_LD), F.embedding(high_N, table_LD)
    return torch.lerp(low_ND, high_ND, share_N.to(table_LD.dtype)[:, None])


@torch.fx.wrap  # it builds lists of a size that a symbolic trace does not know
def factorised_on_grid(
    positions: FactorisedPositions, grid: tuple[int, int], tokens: ClassTokens, like_BMD: Tensor
) -> Tensor:
    """(1, M + count, D) of all patches of a grid; zeros for class tokens. `like_BMD` tells device and width."""
    rows_RD, columns_CD = (positions.along(axis, [grid[axis]], like_BMD.device) for axis in (0, 1))
    patches_1MD = (rows_RD[:, None] + columns_CD).flatten(0, 1)[None]
    return tokens.insert(patches_1MD, patches_1MD.new_zeros(1, tokens.count, patches_1MD.shape[-1]))


def _waves(angle_NF: Tensor) -> Tensor:
    """(N, F) -> (N, 2 F)."""
    return torch.cat([angle_NF.sin(), angle_NF.cos()], dim=-1)
