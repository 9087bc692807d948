"""Training crops of images with a class for each pixel: the image and its mask varied alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torchvision import tv_tensors
from torchvision.transforms import v2

from longvision.data.augment import DenseAugment
from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.base import Sample, Transforms
from longvision.data.transforms.input_spec import InputSpec, as_tensor
from longvision.types import IGNORE

TRIES = 10  # crops drawn before one that shows almost a single class is taken


class SegmentationTransforms(Transforms[np.ndarray]):
    """Batches of images with masks. Evaluation: the image as its spec fits it, with its mask (H, W) int64 as it was
    drawn. Training: a crop of both at the training size, varied alike, (C, h, w) float32, normalised, and (h, w) int64;
    what lies beyond an image smaller than it, below and right, is the mean in the image and ignored in the mask."""

    def __init__(self, augment: DenseAugment, spec: InputSpec) -> None:
        super().__init__(spec)
        self.augment = augment
        steps: list[Any] = [v2.RandomHorizontalFlip(augment.flip)]
        if augment.photometric:
            steps.append(_jitter(augment.photometric, spec.channels))
        self.vary = v2.Compose(steps)

    def evaluate(self, image: AnyImage, label: np.ndarray) -> Sample:
        return self.spec.evaluated(image), torch.from_numpy(label).long()

    def train(self, image: AnyImage, label: np.ndarray, images: ImageSet[np.ndarray]) -> Sample:
        image, mask = self.spec.opened(image), Image.fromarray(label)
        for _ in range(TRIES):
            window = self._draw(image.height, image.width)
            crop_hw = np.array(window.cut(mask, Image.Resampling.NEAREST))
            if self.augment.most == 1 or _largest_share(crop_hw) <= self.augment.most:
                break
        cut = window.cut(image, Image.Resampling.BILINEAR)
        varied, truth = self.vary(tv_tensors.Image(as_tensor(cut)), tv_tensors.Mask(torch.from_numpy(crop_hw)))
        height, width = self.spec.size
        beyond = (0, width - cut.width, 0, height - cut.height)
        seen = self.spec.normalised(varied)
        return pad(seen, beyond), pad(truth.as_subclass(Tensor).long(), beyond, value=IGNORE)

    def _draw(self, height: int, width: int) -> "Window":
        """A window of an image of that size, resized at random."""
        smallest, largest = self.augment.scale
        factor = smallest + (largest - smallest) * float(torch.rand(()))
        seen = self.spec.evaluated_size(height, width)
        scaled = max(1, round(seen[0] * factor)), max(1, round(seen[1] * factor))
        size = min(self.spec.size[0], scaled[0]), min(self.spec.size[1], scaled[1])
        top, left = (int(torch.randint(scaled[i] - size[i] + 1, ())) for i in (0, 1))
        down, across = height / scaled[0], width / scaled[1]
        right, bottom = min(width, (left + size[1]) * across), min(height, (top + size[0]) * down)
        return Window((left * across, top * down, right, bottom), size)


@dataclass(frozen=True)
class Window:
    """A part of an image, and the size it is resized to: only the pixels that are kept are computed.

    Args:
        box: left, top, right and bottom in the image's pixels, fractions included.
        size: height and width of the result.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]

    def cut(self, image: AnyImage, resampling: Image.Resampling) -> AnyImage:
        return image.resize(self.size[::-1], resampling, self.box)


def _largest_share(mask_hw: np.ndarray) -> float:
    """Of the pixels that count, those of the class with the most; 1 where none counts."""
    counts = np.bincount(mask_hw.ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


class BandJitter(torch.nn.Module):
    """Brightness and contrast of any number of channels, all alike: torchvision's varies 1 or 3."""

    def __init__(self, brightness: float, contrast: float) -> None:
        super().__init__()
        self.brightness, self.contrast = brightness, contrast

    def forward(self, image_CHW: Tensor, mask_HW: Tensor) -> tuple[Tensor, Tensor]:
        bright, contrast = (1 + most * (2 * float(torch.rand(())) - 1) for most in (self.brightness, self.contrast))
        x_CHW = image_CHW * bright
        mean = x_CHW.mean()
        return ((x_CHW - mean) * contrast + mean).clamp(0, 1), mask_HW


def _jitter(strength: float, channels: Channels) -> torch.nn.Module:
    if channels not in (1, 3):
        return BandJitter(0.125 * strength, min(1.0, 0.5 * strength))
    if channels == 1:
        return v2.ColorJitter(brightness=0.125 * strength, contrast=0.5 * strength)
    return v2.ColorJitter(0.125 * strength, 0.5 * strength, 0.5 * strength, 0.05 * strength)
