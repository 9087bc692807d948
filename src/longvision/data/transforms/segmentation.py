"""Training crops of pictures with a class for each pixel: the picture and its mask varied alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors
from torchvision.transforms import v2

from longvision.data.dense import DensePreprocess
from longvision.data.io.images import Channels, as_channels
from longvision.types import IGNORE

TRIES = 10  # crops drawn before one that shows almost a single class is taken


@dataclass(frozen=True)
class DenseAugment:
    """How training pictures and their masks are varied.

    Args:
        scale: smallest and largest size, as a share of the size that evaluation sees.
        flip: probability of mirroring left and right.
        photometric: how far colours vary; 1 is 12.5 % in brightness, 50 % in contrast and saturation and 5 % of a
            turn in hue (grey images: brightness and contrast), 0 switches it off.
        most: a crop of which one class covers a larger share is drawn again, up to ten times; 1 switches it off.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    photometric: float = 1.0
    most: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale}: expected two factors, 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip}: expected a probability from 0 to 1")
        if not 0 <= self.photometric <= 2:
            raise ValueError(f"photometric {self.photometric}: expected a strength from 0 (off) to 2")
        if not 0 < self.most <= 1:
            raise ValueError(f"most {self.most}: expected a share above 0, up to 1 (off)")


DEFAULT_AUGMENT = DenseAugment()


class TrainCrop:
    """A picture and its mask -> a crop of both at the training size, varied alike.

    Returns (C, h, w) float32, normalised, and (h, w) int64. What lies beyond a picture smaller than the crop, below and
    right, is the mean in the image and ignored in the mask.
    """

    def __init__(self, augment: DenseAugment, preprocess: DensePreprocess) -> None:
        self.augment, self.preprocess = augment, preprocess
        steps: list[Any] = [v2.ToImage(), v2.RandomHorizontalFlip(augment.flip)]
        if augment.photometric:
            steps.append(_jitter(augment.photometric, preprocess.channels))
        self.vary = v2.Compose(steps)
        self.normalise = preprocess.normalise()

    def __call__(self, image: Image.Image, mask_HW: np.ndarray) -> tuple[Tensor, Tensor]:
        image, mask = as_channels(image, self.preprocess.channels), Image.fromarray(mask_HW)
        for _ in range(TRIES):
            window = self._draw(image.height, image.width)
            crop_hw = np.array(window.cut(mask, Image.Resampling.NEAREST))
            if self.augment.most == 1 or _largest_share(crop_hw) <= self.augment.most:
                break
        cut = window.cut(image, Image.Resampling.BILINEAR)
        varied, truth = self.vary(cut, tv_tensors.Mask(torch.from_numpy(crop_hw)))
        height, width = self.preprocess.size
        beyond = (0, width - cut.width, 0, height - cut.height)
        seen = self.normalise(varied).as_subclass(Tensor)
        return pad(seen, beyond), pad(truth.as_subclass(Tensor).long(), beyond, value=IGNORE)

    def _draw(self, height: int, width: int) -> "Window":
        """A window of a picture of that size, resized at random."""
        smallest, largest = self.augment.scale
        factor = smallest + (largest - smallest) * float(torch.rand(()))
        seen = self.preprocess.evaluated_size(height, width)
        scaled = max(1, round(seen[0] * factor)), max(1, round(seen[1] * factor))
        size = min(self.preprocess.size[0], scaled[0]), min(self.preprocess.size[1], scaled[1])
        top, left = (int(torch.randint(scaled[i] - size[i] + 1, ())) for i in (0, 1))
        down, across = height / scaled[0], width / scaled[1]
        right, bottom = min(width, (left + size[1]) * across), min(height, (top + size[0]) * down)
        return Window((left * across, top * down, right, bottom), size)


@dataclass(frozen=True)
class Window:
    """A part of a picture, and the size it is resized to: only the pixels that are kept are computed.

    Args:
        box: left, top, right and bottom in the picture's pixels, fractions included.
        size: height and width of the result.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]

    def cut(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        return image.resize(self.size[::-1], resampling, self.box)


def _largest_share(mask_hw: np.ndarray) -> float:
    """Of the pixels that count, those of the class with the most; 1 where none counts."""
    counts = np.bincount(mask_hw.ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def _jitter(strength: float, channels: Channels) -> v2.ColorJitter:
    if channels == 1:
        return v2.ColorJitter(brightness=0.125 * strength, contrast=0.5 * strength)
    return v2.ColorJitter(0.125 * strength, 0.5 * strength, 0.5 * strength, 0.05 * strength)
