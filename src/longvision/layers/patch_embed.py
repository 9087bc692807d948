"""Image to patch tokens, at any size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.grid import grid_size, missing_pixels

# They look at sizes that a symbolic trace does not know: it records the calls.
torch.fx.wrap("grid_size")
torch.fx.wrap("divisible")


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
        """(B, C, H, W) -> (B, gh * gw, D). Raises UserError for a size that does not divide."""
        x_BCHW = divisible(x_BCHW, self.proj.in_channels, self.patch, self.stride, self.pad)
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)

    def packed(self, patches_1MP: Tensor) -> Tensor:
        """(1, M, C * P * P), as in `longvision.types.PackedImages` -> (1, M, D). Raises ValueError."""
        channels, pixels = self.proj.in_channels, self.proj.in_channels * self.patch**2
        if patches_1MP.shape[-1] != pixels:
            raise ValueError(
                f"patches of {patches_1MP.shape[-1]} numbers: expected {channels} x {self.patch} x {self.patch} = "
                f"{pixels}; pack with PackedImages.from_images(images, {self.patch}, {self.stride})"
            )
        patches_MCPP = patches_1MP[0].unflatten(1, (channels, self.patch, self.patch))
        return self.proj(patches_MCPP).flatten(1)[None]

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches in an image of that size. Raises UserError for one that does not divide."""
        return grid_size(height, width, self.patch, self.stride, self.pad)


def divisible(x_BCHW: Tensor, channels: int, patch: int, stride: int, pad: bool) -> Tensor:
    """An image batch whose size divides, padded if need be. Raises UserError."""
    height, width = checked_images(x_BCHW, channels).shape[2:]
    grid_size(height, width, patch, stride, pad)  # refuses what does not divide
    if not pad:
        return x_BCHW
    return F.pad(x_BCHW, (0, missing_pixels(width, patch, stride), 0, missing_pixels(height, patch, stride)))


def checked_images(x_BCHW: Tensor, channels: int, smallest: int = 1) -> Tensor:
    """The images. Raises UserError for others: another number of channels or dimensions, a side below `smallest`."""
    if x_BCHW.ndim != 4 or x_BCHW.shape[1] != channels:
        raise UserError(
            f"image of shape {tuple(x_BCHW.shape)}: expected (batch, {channels}, height, width); "
            "create the model with in_chans=… for another number of channels"
        )
    if min(x_BCHW.shape[2:]) < smallest:
        height, width = x_BCHW.shape[2:]
        raise UserError(f"image {height}x{width}: expected {smallest} pixels a side at least")
    return x_BCHW
