"""Image to patch tokens, at any size."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, gh * gw, D), row by row: a convolution as large as a patch, at a stride of its own.

    Args:
        patch: side of a patch, pixels.
        stride: distance between patches, pixels; below `patch` they overlap.
        in_chans: channels of the image.
        dim: model width D.
        pad: fill an image whose size does not divide with zeros, right and below.
    """

    def __init__(self, patch: int, stride: int, in_chans: int, dim: int, pad: bool = False) -> None:
        super().__init__()
        self.patch, self.stride, self.pad = patch, stride, pad
        self.proj = nn.Conv2d(in_chans, dim, patch, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, gh * gw, D). Raises ValueError for a size that does not divide."""
        if x_BCHW.ndim != 4 or x_BCHW.shape[1] != self.proj.in_channels:
            raise ValueError(
                f"image of shape {tuple(x_BCHW.shape)}: expected (batch, {self.proj.in_channels}, height, width); "
                "create the model with in_chans=… for another number of channels"
            )
        height, width = x_BCHW.shape[2:]
        self.grid_size(height, width)  # refuses what does not divide
        if self.pad:
            bottom, right = self._missing(height), self._missing(width)
            x_BCHW = F.pad(x_BCHW, (0, right, 0, bottom))
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of that size. Raises ValueError for one that does not divide."""
        if not self.pad and (self._missing(height) or self._missing(width)):
            low, high = (f"{self._nearest(height, up)}x{self._nearest(width, up)}" for up in (False, True))
            nearest = f"{low} or {high}" if low != high else low
            raise ValueError(
                f"image {height}x{width} does not divide into patches of {self.patch} at stride {self.stride}: "
                f"resize to {nearest}, or pass pad=True when the model is created"
            )
        rows, columns = ((side + self._missing(side) - self.patch) // self.stride + 1 for side in (height, width))
        return rows, columns

    def _missing(self, side: int) -> int:
        """Pixels up to the next size that divides."""
        return max(self.patch - side, (self.patch - side) % self.stride)

    def _nearest(self, side: int, up: bool) -> int:
        """The next size that divides, or the one before it; the size itself where it divides."""
        missing = self._missing(side)
        return side + missing if up or not missing else max(self.patch, side + missing - self.stride)
