"""Images as callers have them -> images, where what the values mean is certain; refused where it is not."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longvision.data.io.deep import AnyImage, DeepImage
from longvision.data.io.images import as_channels, read_image
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UserError

ImageSource = str | Path | bytes | Image.Image | np.ndarray | Tensor


def to_image(source: ImageSource, spec: InputSpec, name: str) -> AnyImage:
    """An upright image in the spec's channels.

    Args:
        source: a path; the bytes of an image file; a PIL image; an array (H, W, C) or (H, W); a tensor (C, H, W).
            Arrays and tensors hold uint8 from 0 to 255, or floats from 0 to 1, rounded to 8 bits as files hold them.
            For a model that was trained on more than 8 bits, others hold values as its files do. 1 channel is grey, 3
            are red, green and blue, others are as many as the model takes.
        spec: how a model's images are read.
        name: what an error calls the image, where the source has no path.

    Raises:
        UnreadableImage: a path or bytes that hold no image.
        UserError: an array or tensor of another shape, type or range.
        TypeError: something else.
    """
    if isinstance(source, str | Path):
        return read_image(source, spec.channels)
    if isinstance(source, bytes | Image.Image):
        return read_image(source, spec.channels, name)
    if isinstance(source, Tensor):
        _check_shape(source, name, 0, "a tensor (C, H, W)", spec)
        values = source.detach().cpu()
        # NumPy has no bfloat16
        source = (values.float() if values.dtype == torch.bfloat16 else values).permute(1, 2, 0).numpy()
    elif isinstance(source, np.ndarray) and source.ndim != 2:
        _check_shape(source, name, 2, "an array (H, W, C) or (H, W)", spec)
    if isinstance(source, np.ndarray):
        return as_channels(_from_array(source, name, spec), spec.channels, name)
    raise TypeError(f"{name} is {type(source).__name__}: expected a path, bytes, a PIL image, an array or a tensor")


def _check_shape(values: Any, name: str, channel_axis: int, expected: str, spec: InputSpec) -> None:
    if values.ndim == 4:
        raise UserError(f"{name} has the shape {tuple(values.shape)}, a batch of images: give them as a list, list(x)")
    fits = {1, 3} if spec.channels in (1, 3) else {spec.channels}
    if values.ndim != 3 or values.shape[channel_axis] not in fits:
        channels = " or ".join(map(str, sorted(fits)))
        raise UserError(f"{name} has the shape {tuple(values.shape)}: expected {expected} with {channels} channels")


def _from_array(values: np.ndarray, name: str, spec: InputSpec) -> AnyImage:
    """(H, W) or (H, W, C) -> "L" or "RGB", or a deep image where the model takes such."""
    if 0 in values.shape:
        raise UserError(f"{name} has the shape {values.shape}: expected at least one pixel")
    if spec.range is not None and values.dtype != np.uint8:
        return _as_trained(values, name, spec)
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
    if values.shape[2:] not in ((), (1,), (3,)):
        return DeepImage(values, name)
    return Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2:] == (1,) else values))


def _as_trained(values: np.ndarray, name: str, spec: InputSpec) -> DeepImage:
    """Values as the files of training have them. Raises UserError for floats that may as well be from 0 to 1."""
    if not np.issubdtype(values.dtype, np.number):
        raise UserError(f"{name} is {values.dtype}: expected numbers")
    small = np.issubdtype(values.dtype, np.floating) and values.min(initial=0) >= 0 and values.max(initial=0) <= 1
    if small and isinstance(spec.range, tuple) and spec.range[1] > 4:
        raise UserError(
            f"{name} holds floats from 0 to 1, the model reads {spec.range[0]:.7g} to {spec.range[1]:.7g}: "
            "give values as the files of training have them"
        )
    return DeepImage(np.atleast_3d(values), name)
