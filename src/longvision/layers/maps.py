"""Layers on maps whose channels are last, (B, H, W, D), as all of ours are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.layers.attention import LayerNorm


class MapConv2d(nn.Conv2d):
    """nn.Conv2d on (B, H, W, C) -> (B, H', W', D), in torch's channels-last memory format: nothing is copied."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', D), in the weights' dtype."""
        return super().forward(x_BHWC.permute(0, 3, 1, 2).to(self.weight.dtype)).permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """(B, H, W, D) -> (B, ⌈H / 2⌉, ⌈W / 2⌉, 2 D): the four pixels of a cell, normalised and projected (Swin's, arXiv
    2103.14030). An odd side gets zeros, right or below.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim, 1e-5)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, ⌈H / 2⌉, ⌈W / 2⌉, 2 D)."""
        x_BHWD = _even(x_BHWD)
        cells = [x_BHWD[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(cells, dim=-1)))


@torch.fx.wrap  # a symbolic trace does not know the sides
def _even(x_BHWD: Tensor) -> Tensor:
    """With zeros where a side is odd."""
    height, width = x_BHWD.shape[1:3]
    return F.pad(x_BHWD, (0, 0, 0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x_BHWD
