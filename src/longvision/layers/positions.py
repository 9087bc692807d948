"""Position embeddings, learned on one grid of patches, for another."""

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


def _resample(patches_1MD: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """(1, M, D) -> (1, M', D), in float32 or better; the channels stay last in memory, where they are."""
    dtype = torch.promote_types(patches_1MD.dtype, torch.float32)
    map_1DHW = patches_1MD.to(dtype).unflatten(1, old_grid).permute(0, 3, 1, 2)
    map_1DHW = F.interpolate(map_1DHW, new_grid, mode="bicubic", antialias=True, align_corners=False)
    return map_1DHW.permute(0, 2, 3, 1).flatten(1, 2).to(patches_1MD.dtype)
