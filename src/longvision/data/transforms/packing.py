"""From images of every shape to packs of patches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longvision.data.augment import Augment
from longvision.data.io.deep import AnyImage
from longvision.data.order import Draw
from longvision.data.transforms.base import Sample
from longvision.data.transforms.classification import ClassificationTransforms, train_transform
from longvision.data.transforms.input_spec import InputSpec
from longvision.types import PackedImages, Size


class PackedTransforms(ClassificationTransforms):
    """Batches of `PackedImages` and labels (B,) int64.

    A training image is brought to the size of its draw, whose proportions a random crop has too, and some of its
    patches may be left out. Its pixels stay bytes until they are on their device, unless they are erased or have more
    bits.
    """

    def __init__(self, augment: Augment, spec: InputSpec, num_classes: int) -> None:
        super().__init__(augment, spec, num_classes)
        self.augment = augment
        self.varied: dict[Size, Callable[[AnyImage], Tensor]] = {}  # for the sizes that have come

    def needed(self, size: Size) -> Size:
        """Height and width that an image must have for its smallest crop to have that size."""
        share = self.augment.crop_scale[0] if self.augment.crop_scale else 1.0
        return math.ceil(size[0] / math.sqrt(share)), math.ceil(size[1] / math.sqrt(share))

    def train_at(self, draw: Draw, image: AnyImage, label: int) -> Sample:
        """-> image (C, H, W), uint8 or normalised float32, and its label with the patches left, None for all."""
        size: Size = draw.size  # type: ignore[assignment]
        if size not in self.varied:
            self.varied[size] = train_transform(self.augment, replace(self.spec, size=size), packed=True)
        image_CHW = self.varied[size](image)
        patches = size[0] * size[1] // self.spec.patch**2
        if draw.length in (None, patches):
            return image_CHW, (label, None)
        return image_CHW, (label, torch.randperm(patches)[: draw.length].sort().values)

    def evaluate(self, image: AnyImage, label: int) -> Sample:
        return self.spec.evaluated(image), label

    def collate(self, samples: Sequence[Sample]) -> Any:
        images, labels = zip(*samples, strict=True)
        kept: Any = [None] * len(labels)
        if isinstance(labels[0], tuple):
            labels, kept = zip(*labels, strict=True)
        if len({image_CHW.dtype for image_CHW in images}) > 1:
            images = tuple(self.spec.normalised(x) if x.dtype == torch.uint8 else x for x in images)
        grids = [self._cut(image_CHW) for image_CHW in images]
        shapes = tuple((grid.shape[0], grid.shape[1]) for grid in grids)
        patches = [rows * columns for rows, columns in shapes]
        lengths = [most if numbers is None else len(numbers) for numbers, most in zip(kept, patches)]
        patches_MK = torch.empty(sum(lengths), grids[0][0, 0].numel(), dtype=images[0].dtype)
        for grid, numbers, part in zip(grids, kept, patches_MK.split(lengths)):
            if numbers is None:  # at once, without a copy in between; of bytes NumPy's is five times as fast as torch's
                np.copyto(part.view(grid.shape).numpy(), grid.numpy())
            else:
                part.copy_(grid.flatten(2).flatten(0, 1)[numbers])
        kept_M = None
        if lengths != patches:
            kept_M = torch.cat([torch.arange(n) if numbers is None else numbers for numbers, n in zip(kept, patches)])
        return PackedImages(patches_MK[None], shapes, kept_M, tuple(lengths)), torch.tensor(labels)

    def _cut(self, image_CHW: Tensor) -> Tensor:
        """(C, H, W) -> (rows, columns, C, P, P), as `PackedImages` has them."""
        side = self.spec.patch
        return image_CHW.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(1, 3, 0, 2, 4)

    def mix(self, batch: Any) -> Any:
        """Bytes become normalised numbers."""
        packed, labels_B = batch
        if packed.patches.dtype == torch.uint8:
            packed = packed.with_patches(self._normalised(packed.patches))
        return packed, labels_B

    def _normalised(self, patches_1MK: Tensor) -> Tensor:
        """uint8 (1, M, C * P * P) -> float32, as `InputSpec.normalised` makes it of the image."""
        mean, std = (torch.tensor(x, device=patches_1MK.device)[:, None] for x in (self.spec.mean, self.spec.std))
        x_1MCK = patches_1MK.unflatten(2, (len(mean), -1)).float() / 255
        return ((x_1MCK - mean) / std).flatten(2)
