"""What training does to an image and to a batch that evaluation does not."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import Mixup
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from longvision.data.augment import Augment
from longvision.data.io.deep import AnyImage, DeepImage
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.base import Sample, Transforms
from longvision.data.transforms.input_spec import InputSpec, as_tensor
from longvision.errors import UserError
from longvision.types import Size

Batch = tuple[Tensor, Tensor]


class ClassificationTransforms(Transforms[int]):
    """Batches of images (B, C, H, W) float32 and labels (B,) int64; with mixup or CutMix, training labels become soft
    targets (B, K) once the batch is on its device."""

    evaluation_batch = None

    def __init__(self, augment: Augment, spec: InputSpec, num_classes: int) -> None:
        super().__init__(spec)
        self.vary = train_transform(augment, spec)
        self.mixup = batch_mixup(augment, num_classes)

    def train(self, image: AnyImage, label: int, images: ImageSet[int]) -> Sample:
        return self.vary(image), label

    def collate(self, samples: Sequence[Sample]) -> Batch:
        images, labels = zip(*samples, strict=True)
        return torch.stack(images), torch.tensor(labels)

    def mix(self, batch: Batch) -> Batch:
        return batch if self.mixup is None else self.mixup(*batch)


def train_transform(augment: Augment, spec: InputSpec, packed: bool = False) -> Callable[[AnyImage], Tensor]:
    """Image -> augmented, normalised float32 (C, H, W). To be packed, a crop has the proportions of the size, and bytes
    that are not erased stay bytes."""
    steps: list[Callable[..., Any]] = [spec.opened, *_geometry(augment, spec, packed)]
    if augment.rand_augment:
        steps += [F.to_pil_image] * packed
        steps.append(ColourRandAugment(augment.rand_augment, spec))
    steps.append(partial(_bytes_or_normalised, spec) if packed and not augment.erase else spec.normalised)
    if augment.erase:
        # normal noise: after normalisation, pixels that look like neither class
        steps.append(RandomErasing(augment.erase, mode="pixel", device="cpu"))
    return partial(_through, steps)


def _through(steps: list[Callable[..., Any]], image: AnyImage) -> Any:
    return reduce(lambda x, step: step(x), steps, image)


class RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, of deep images too, which are cut before their values are computed."""

    def forward(self, image: AnyImage) -> Image.Image | Tensor:
        if isinstance(image, Image.Image):
            return super().forward(image)
        shape = torch.empty(1, image.height, image.width, device="meta")
        top, left, height, width = self.get_params(shape, self.scale, self.ratio)
        cut_CHW = as_tensor(image.crop((left, top, left + width, top + height)))
        return F.resize(cut_CHW, self.size, self.interpolation, antialias=self.antialias)


def _tensor_if_deep(image: AnyImage) -> Image.Image | Tensor:
    """torchvision resizes Pillow's images and tensors."""
    return as_tensor(image) if isinstance(image, DeepImage) else image


def _bytes_or_normalised(spec: InputSpec, image: AnyImage | Tensor) -> Tensor:
    x_CHW = as_tensor(image)
    return x_CHW if x_CHW.dtype == torch.uint8 else spec.normalised(x_CHW)


def batch_mixup(augment: Augment, num_classes: int) -> "BatchMixup | None":
    return BatchMixup(augment, num_classes) if augment.mixup or augment.cutmix else None


class BatchMixup:
    """timm's mixup and CutMix for batches of any length: an odd one's last image stays as it is."""

    def __init__(self, augment: Augment, num_classes: int) -> None:
        self.num_classes = num_classes
        self.mix = Mixup(augment.mixup, augment.cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __call__(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B,) -> mixed images (B, C, H, W) and their soft targets (B, K)."""
        even = len(labels_B) // 2 * 2
        targets_BK = one_hot(labels_B, self.num_classes).float()
        if even:
            images_BCHW = images_BCHW.clone()  # timm mixes in place
            mixed, soft = self.mix(images_BCHW[:even], labels_B[:even])
            images_BCHW[:even], targets_BK[:even] = mixed, soft
        return images_BCHW, targets_BK


class ColourRandAugment:
    """timm's RandAugment, which knows colour images only, for grey ones too."""

    def __init__(self, policy: str, spec: InputSpec) -> None:
        grey_or_rgb = tuple(round(255 * value) for value in spec.mean)
        self.augment = _rand_augment(
            policy,
            {
                "translate_const": int(0.45 * min(spec.size)),  # timm's own choice for its recipes
                "img_mean": grey_or_rgb * (3 // len(grey_or_rgb)),
            },
        )

    def __call__(self, image: Image.Image | Tensor) -> Image.Image:
        if not isinstance(image, Image.Image):
            raise UserError("rand_augment works on images of 8 bits in 1 or 3 channels: switch it off (null)")
        varied: Image.Image = self.augment(image.convert("RGB"))
        return varied.convert(image.mode)


class ProportionalCrop:
    """A part of an image of a share of its area, at random, or all of it -> (C, *size), in the proportions of the size.
    torch resizes bytes in a fraction of Pillow's time."""

    def __init__(self, size: Size, scale: tuple[float, float] | None, interpolation: v2.InterpolationMode) -> None:
        self.size, self.scale, self.interpolation = size, scale, interpolation

    def __call__(self, image: AnyImage) -> Tensor:
        part_CHW = as_tensor(image) if self.scale is None else self._cut(image, *self.scale)
        return F.resize(part_CHW, list(self.size), self.interpolation, antialias=True)

    def _cut(self, image: AnyImage, least: float, most: float) -> Tensor:
        share, across, down = torch.rand(3).tolist()
        side = min(image.height / self.size[0], image.width / self.size[1]) * math.sqrt(least + (most - least) * share)
        height = min(max(1, round(side * self.size[0])), image.height)
        width = min(max(1, round(side * self.size[1])), image.width)
        top, left = round((image.height - height) * down), round((image.width - width) * across)
        if isinstance(image, DeepImage):
            return as_tensor(image.crop((left, top, left + width, top + height)))
        return as_tensor(image)[:, top : top + height, left : left + width]


def _geometry(augment: Augment, spec: InputSpec, packed: bool) -> list[Callable[..., Any]]:
    """Crop, turn, move, zoom and flip, on the PIL image."""
    steps: list[Callable[..., Any]] = []
    size, interpolation = spec.size, v2.InterpolationMode(spec.interpolation)
    if packed:
        steps.append(ProportionalCrop(size, augment.crop_scale, interpolation))
    elif augment.crop_scale is None:
        steps += [_tensor_if_deep, v2.Resize(size, interpolation, antialias=True)]
    else:
        scale = augment.crop_scale
        steps.append(RandomResizedCrop(size, scale, interpolation=interpolation, antialias=True))
    if augment.rotate or augment.shift or augment.zoom:
        steps.append(
            v2.RandomAffine(
                degrees=augment.rotate,
                translate=(augment.shift, augment.shift),
                scale=(1 - augment.zoom, 1 + augment.zoom),
                interpolation=v2.InterpolationMode.BILINEAR,
            )
        )
    if augment.flip:
        steps.append(partial(_flipped, augment.flip) if packed else v2.RandomHorizontalFlip(augment.flip))
    return steps


def _flipped(probability: float, image_CHW: Tensor) -> Tensor:
    """As torchvision's, which takes longer to see what it is given than to flip it."""
    return image_CHW.flip(-1) if torch.rand(1) < probability else image_CHW


def _rand_augment(policy: str, settings: dict[str, Any]) -> RandAugment:
    try:
        augment = rand_augment_transform(policy, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(f"rand_augment {policy!r}: timm knows no such policy") from error
    for step in augment.ops:
        if step.name.startswith("Posterize"):
            step.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """At its strongest timm keeps no bit at all: a black image, and an error from newer Pillows."""
    return ImageOps.posterize(image, min(max(bits, 1), 8))
