"""Stochastic depth (arXiv 1603.09382), image by image where they are packed in one row too."""

from timm.layers import DropPath
from torch import Tensor, nn

from longvision.errors import UserError


def rising(last: float, depth: int) -> list[float]:
    """Each block's probability: 0 at the first, `last` at the last. Raises UserError for one that is none."""
    if not 0 <= last < 1:
        raise UserError(f"drop_path_rate {last}: expected a number from 0 to below 1")
    return [last * number / max(1, depth - 1) for number in range(depth)]


def dropped_by_image(drop_path: nn.Module, x_BMD: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(B, M, D) -> (B, M, D): what `drop_path` does to each row, of packed images to each image.

    It decides about a 1 an image; whatever else stands in its place is called with the tokens.
    """
    if cu_seqlens is None or not isinstance(drop_path, DropPath):
        return drop_path(x_BMD)
    scale_S = drop_path(x_BMD.new_ones(len(cu_seqlens) - 1))
    return x_BMD * scale_S.repeat_interleave(cu_seqlens.diff(), output_size=x_BMD.shape[1])[:, None]
