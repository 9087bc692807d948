"""Position embeddings, learned on one grid of patches, for another."""

from timm.layers import resample_abs_pos_embed
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
    patches_1MD = resample_abs_pos_embed(patches_1MD, list(new_grid), list(old_grid), num_prefix_tokens=0)
    return tokens.insert(patches_1MD, class_1TD)
