"""Images as callers have them -> 8-bit images, where what the values mean is certain; refused where it is not."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from longvision.data.io.images import Channels, as_channels, read_image
from longvision.errors import UserError

ImageSource = str | Path | bytes | Image.Image | np.ndarray | Tensor


def to_image(source: ImageSource, channels: Channels, name: str) -> Image.Image:
    """An upright 8-bit image, "L" (1 channel) or "RGB" (3 channels).

    Args:
        source: a path; the bytes of an image file; a PIL image; an array (H, W, C) or (H, W); a tensor (C, H, W).
            Arrays and tensors hold uint8 from 0 to 255 or floats from 0 to 1, rounded to 8 bits as files hold them;
            1 channel is grey, 3 are red, green and blue.
        channels: of the image returned.
        name: what an error calls the image, where the source has no path.

    Raises:
        UnreadableImage: a path or bytes that hold no image.
        UserError: an array or tensor of another shape, type or range.
        TypeError: something else.
    """
    if isinstance(source, str | Path):
        return read_image(source, channels)
    if isinstance(source, bytes | Image.Image):
        return read_image(source, channels, name)
    if isinstance(source, Tensor):
        _check_shape(source, name, 0, "a tensor (C, H, W)")
        values = source.detach().cpu()
        # NumPy has no bfloat16
        source = (values.float() if values.is_floating_point() else values).permute(1, 2, 0).numpy()
    elif isinstance(source, np.ndarray) and source.ndim != 2:
        _check_shape(source, name, 2, "an array (H, W, C) or (H, W)")
    if isinstance(source, np.ndarray):
        return as_channels(_from_array(source, name), channels)
    raise TypeError(f"{name} is {type(source).__name__}: expected a path, bytes, a PIL image, an array or a tensor")


def _check_shape(values: Any, name: str, channel_axis: int, expected: str) -> None:
    if values.ndim == 4:
        raise UserError(f"{name} has the shape {tuple(values.shape)}, a batch of images: give them as a list, list(x)")
    if values.ndim != 3 or values.shape[channel_axis] not in (1, 3):
        raise UserError(f"{name} has the shape {tuple(values.shape)}: expected {expected} with 1 or 3 channels")


def _from_array(values: np.ndarray, name: str) -> Image.Image:
    """(H, W) or (H, W, C) -> "L" or "RGB"."""
    if 0 in values.shape:
        raise UserError(f"{name} has the shape {values.shape}: expected at least one pixel")
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise UserError(
                f"{name} has values from {low:.4g} to {high:.4g}: expected floats from 0 to 1, before any "
                "normalisation, or uint8 from 0 to 255"
            )
        values = (values.astype(np.float32) * 255).round().astype(np.uint8)
    if values.dtype != np.uint8:
        raise UserError(f"{name} is {values.dtype}: expected uint8 from 0 to 255, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2:] == (1,) else values))
