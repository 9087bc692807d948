"""Position embeddings, learned on one grid of patches, for another."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.layers.tokens import ClassTokens


def resample_pos_embed(
    pos_1MD: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], tokens: ClassTokens
) -> Tensor:
    """(1, M + count, D) -> (1, M' + count, D): bicubic, antialiased, the class tokens' rows untouched.

    The row of a class token in the middle is found in the middle of the old sequence and put into the middle of the
    new one. (The authors' code takes row 0 for it when it fine-tunes, segments and detects, which shifts every
    position by one.)
    """
    if old_grid == new_grid:
        return pos_1MD
    patches_1MD, class_1TD = tokens.extract(pos_1MD)
    return tokens.insert(_resample(patches_1MD, old_grid, new_grid), class_1TD)


def packed_pos_embed(
    pos_1MD: Tensor, old_grid: tuple[int, int], grids: Sequence[tuple[int, int]], number_M: Tensor,
    lengths: Sequence[int], tokens: ClassTokens,
) -> Tensor:  # fmt: skip
    """(M, D): of the patches with these numbers in their images' grids, `lengths` of them in each image.

    Each grid that is there is resampled once, as in `resample_pos_embed`.
    """
    patches_1MD, _ = tokens.extract(pos_1MD)
    starts, tables, begin = {}, [], 0
    for grid in dict.fromkeys(grids):
        starts[grid] = begin
        tables.append(patches_1MD if grid == old_grid else _resample(patches_1MD, old_grid, grid))
        begin += grid[0] * grid[1]
    start_M = per_patch([starts[grid] for grid in grids], lengths, number_M.device)
    return F.embedding(start_M + number_M, torch.cat(tables, dim=1)[0])


def per_patch(values: Sequence[int], lengths: Sequence[int], device: torch.device) -> Tensor:
    """int64 (M,): each image's value for each of its patches."""
    counts = torch.tensor(lengths)
    return torch.tensor(values).repeat_interleave(counts, output_size=sum(lengths)).to(device)


def starts_of(lengths: Sequence[int]) -> list[int]:
    """Where each begins, one behind another."""
    return [0, *accumulate(lengths[:-1])]


def _resample(patches_1MD: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """(1, M, D) -> (1, M', D), in float32 or better; the channels stay last in memory, where they are."""
    dtype = torch.promote_types(patches_1MD.dtype, torch.float32)
    map_1DHW = patches_1MD.to(dtype).unflatten(1, old_grid).permute(0, 3, 1, 2)
    map_1DHW = F.interpolate(map_1DHW, new_grid, mode="bicubic", antialias=True, align_corners=False)
    return map_1DHW.permute(0, 2, 3, 1).flatten(1, 2).to(patches_1MD.dtype)
