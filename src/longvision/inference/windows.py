"""A segmentation model on one image: on the whole of it, in overlapping windows, with test-time augmentation."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.inference.config import InferenceConfig
from longvision.types import Size

Model = Callable[[Tensor], Tensor]


def probabilities(
    model: Model, image_CHW: Tensor, classes: int, size: Size, config: InferenceConfig, batch: int = 8
) -> Tensor:
    """(C, h, w) -> (K, H, W) float32: each pixel's probabilities, resized to the `size` of the original image.

    Args:
        model: images (B, C, h, w) -> logits (B, K, h, w).
        classes: K.
        size: height and width, pixels.
        config: windows and test-time augmentation.
        batch: windows that the model sees at once.
    """

    def predict(scaled_CHW: Tensor) -> Tensor:
        if config.window is None:
            return whole(model, scaled_CHW)
        step = config.stride or max(1, config.window * 2 // 3)
        return slide(model, scaled_CHW, (config.window, config.window), (step, step), classes, batch)

    return _resized(augmented(predict, image_CHW, config.scales, config.flip), size)


def whole(model: Model, image_CHW: Tensor) -> Tensor:
    """(C, H, W) -> logits (K, H, W), float32, in one pass of a model: images (1, C, h, w) -> logits (1, K, h, w)."""
    return _logits(model, image_CHW[None])[0]


def slide(model: Model, image_CHW: Tensor, crop: Size, stride: Size, classes: int, batch: int = 8) -> Tensor:
    """(C, H, W) -> logits (K, H, W), float32, each the mean over the windows that see its pixel.

    An image smaller than the window is padded by zeros on the right and below.

    Args:
        model: windows (B, C, h, w) -> logits (B, K, h, w).
        crop: height and width of a window, pixels.
        stride: from one window to the next, down and to the right, at most `crop`.
        classes: K.
        batch: windows that the model sees at once.
    """
    if not all(0 < step <= side for step, side in zip(stride, crop, strict=True)):
        raise ValueError(
            f"stride {stride} for windows of {crop}: expected 1 to the window's size, or pixels would be left out"
        )
    height, width = image_CHW.shape[1:]
    padded = _padded(image_CHW, (max(height, crop[0]), max(width, crop[1])))
    logits = padded.new_zeros((classes, *padded.shape[1:]), dtype=torch.float32)
    seen = padded.new_zeros(padded.shape[1:], dtype=torch.float32)
    corners = list(window_corners((padded.shape[1], padded.shape[2]), crop, stride))
    for first in range(0, len(corners), batch):
        places = [
            (slice(top, top + crop[0]), slice(left, left + crop[1])) for top, left in corners[first : first + batch]
        ]
        outputs = _logits(model, torch.stack([padded[:, down, right] for down, right in places]), classes)
        for (down, right), output in zip(places, outputs, strict=True):
            logits[:, down, right] += output
            seen[down, right] += 1
    return logits.div_(seen)[:, :height, :width]


def window_corners(size: Size, crop: Size, stride: Size) -> Iterator[tuple[int, int]]:
    """(top, left) of every window: at multiples of the stride, the last of a row or column moved back to fit."""
    for top in _starts(size[0], crop[0], stride[0]):
        for left in _starts(size[1], crop[1], stride[1]):
            yield top, left


def augmented(predict: Model, image_CHW: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False) -> Tensor:
    """(C, H, W) -> probabilities (K, H, W), float32: the mean over scales, mirrored as well where `flip`.

    Logits are brought back to the image's size before their softmax.

    Args:
        predict: an image (C, h, w) of any size -> logits (K, h, w).
        scales: factors on height and width, above 0.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales {tuple(scales)}: expected at least one, all above 0; (1.0,) is the image as it is")
    size = (image_CHW.shape[1], image_CHW.shape[2])
    total: Tensor | None = None
    for scale in scales:
        scaled = _resized(image_CHW, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))))
        for mirrored in (False, True) if flip else (False,):
            logits = predict(scaled.flip(-1)).flip(-1) if mirrored else predict(scaled)
            share = _resized(logits.float(), size).softmax(0)
            total = share if total is None else total.add_(share)
    assert total is not None
    return total.div_(len(scales) * (1 + flip))


def _logits(model: Model, images_BCHW: Tensor, classes: int | None = None) -> Tensor:
    """The model's logits (B, K, H, W) in float32. Raises ValueError for another shape."""
    logits = model(images_BCHW)
    batch, _, height, width = images_BCHW.shape
    expected = (batch, classes or logits.shape[1], height, width)
    if logits.shape != expected:
        raise ValueError(
            f"the model returns {tuple(logits.shape)} for images of {height}x{width}: expected {expected}, "
            "(batch, classes, height, width)"
        )
    return logits.float()


def _padded(image_CHW: Tensor, size: Size) -> Tensor:
    return F.pad(image_CHW, (0, size[1] - image_CHW.shape[2], 0, size[0] - image_CHW.shape[1]))


def _resized(x_CHW: Tensor, size: Size) -> Tensor:
    """Bilinear; averaged over all that falls into a pixel where it shrinks."""
    if x_CHW.shape[1:] == size:
        return x_CHW
    return F.interpolate(x_CHW[None], size, mode="bilinear", antialias=True)[0]


def _starts(length: int, window: int, stride: int) -> list[int]:
    count = -(-(length - window) // stride) + 1
    return [min(i * stride, length - window) for i in range(count)]
