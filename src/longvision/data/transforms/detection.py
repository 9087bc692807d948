"""What training does to an image and its objects: large-scale jitter and copy-paste (arXiv 2012.07177)."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from longvision.data.augment import DetectionAugment
from longvision.data.io.deep import AnyImage, DeepImage
from longvision.data.io.object_masks import ObjectMasks
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.base import Sample, Transforms
from longvision.data.transforms.input_spec import InputSpec, as_tensor
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.types import Target

LEAST_SIDE = 1.0  # pixels: a smaller object is dropped
LEAST_SEEN = 0.1  # an object of which pasted ones leave this share or less is dropped
# SSD's (arXiv 1512.02325), each with even odds, but for its swapped channels (those of RandomPhotometricDistort): they
# turn red into green, and a colour is often what tells classes apart.
PHOTOMETRIC = v2.RandomOrder(
    [
        v2.RandomApply([v2.ColorJitter(brightness=0.125)]),
        v2.RandomApply([v2.ColorJitter(contrast=0.5)]),
        v2.RandomApply([v2.ColorJitter(saturation=0.5)]),
        v2.RandomApply([v2.ColorJitter(hue=0.05)]),
    ]
)
HALF = 128  # of 255: a pixel covered to half or more is the object's

View = tuple[Tensor, Target]  # uint8, or float32 to 1, (C, h, w), and its objects: a step turns one into the next


class DetectionTransforms(Transforms[Target]):
    """Batches of images and of their objects; either may have none.

    A training image fills the model's input; an evaluated one is as large as fits into it, and its objects stay in the
    pixels of the original, whose size is `target.size`.
    """

    def __init__(self, augment: DetectionAugment, spec: InputSpec) -> None:
        super().__init__(spec)
        if augment.photometric and spec.channels not in (1, 3):
            raise UserError(f"photometric {augment.photometric}: {spec.channels} channels are no colours, set it to 0")
        self.augment = augment

    def train(self, image: AnyImage, label: Target, images: ImageSet[Target]) -> Sample:
        def another() -> tuple[AnyImage, Target]:
            while True:  # one can be read: `image`
                with suppress(UnreadableImage, MissingFileError):  # it is counted and named when its own turn comes
                    return images[up_to(len(images) - 1)]

        return training_sample(image, label, self.spec, self.augment, another)

    def evaluate(self, image: AnyImage, label: Target) -> Sample:
        return self.spec.evaluated(image), replace(label, size=(image.height, image.width))


def training_sample(
    image: AnyImage,
    target: Target,
    spec: InputSpec,
    augment: DetectionAugment,
    another: Callable[[], tuple[AnyImage, Target]],
) -> tuple[Tensor, Target]:
    """An image and its objects -> normalised float32 (C, *size) and the objects that are left, perhaps none.

    Crowds are dropped. Boxes are tight around what is to be seen of an object where there are masks. `size` is the
    height and width of what is not padding, which lies right and below. `another` draws the image whose objects are
    pasted.
    """
    view = jittered(image, target, spec, augment)
    if happens(augment.copy_paste):
        above = jittered(*another(), spec, augment)
        view = pasted(view, above)
    image_CHW, target = view
    return spec.normalised(image_CHW), target


def jittered(image: AnyImage, target: Target, spec: InputSpec, augment: DetectionAugment) -> tuple[Tensor, Target]:
    """Large-scale jitter: uint8 (C, *size), and the objects in it with masks bool (N, *size)."""
    view = resized_at_random(*opened(spec.opened(image), target.select(~target.iscrowd)), spec.size, augment.scale)
    if happens(augment.flip):
        view = moved(view, F.horizontal_flip)
    image_CHW, target = view
    target = replace(target, size=(image_CHW.shape[1], image_CHW.shape[2]))
    if happens(augment.photometric):
        image_CHW = PHOTOMETRIC(image_CHW)
    return padded_to_input(image_CHW, spec), tidied(target, spec.size)


def opened(image: AnyImage, target: Target) -> tuple[Tensor | DeepImage, Target]:
    """Masks become images, one channel an object, 0 or 255: resized as the image is, they stay on its pixels. Those
    that are not drawn yet are drawn when they are resized, and the values of a deep image computed, as a part of the
    image needs no more."""
    boxes = tv_tensors.BoundingBoxes(target.boxes, format="XYXY", canvas_size=(image.height, image.width))
    masks_NHW = target.masks
    if masks_NHW is not None and not isinstance(masks_NHW, ObjectMasks):
        masks_NHW = masks_NHW.to(torch.uint8) * 255
    return image if isinstance(image, DeepImage) else as_tensor(image), replace(target, boxes=boxes, masks=masks_NHW)


def resized_at_random(
    image: Tensor | DeepImage, target: Target, size: tuple[int, int], scale: tuple[float, float]
) -> View:
    """A random size; of an image that becomes too large for `size`, a random part.

    The part is cut before it is enlarged, whole pixels of the original: an image enlarged as a whole, and as many
    masks, would fill gigabytes.
    """
    height, width = (image.height, image.width) if isinstance(image, DeepImage) else image.shape[-2:]
    factor = float(torch.empty(()).uniform_(*scale)) * min(size[0] / height, size[1] / width)
    tall, high = part_and_result(height, size[0], factor)
    broad, wide = part_and_result(width, size[1], factor)
    top, left = up_to(height - tall), up_to(width - broad)

    def cut(part: Any) -> Tensor:
        if isinstance(part, ObjectMasks):
            return part.resized_crop(top, left, tall, broad, [high, wide])
        if isinstance(part, DeepImage):
            return F.resize(as_tensor(part.crop((left, top, left + broad, top + tall))), [high, wide], antialias=True)
        return F.resized_crop(part, top, left, tall, broad, [high, wide], antialias=True)

    return moved((image, target), cut)


def part_and_result(side: int, most: int, factor: float) -> tuple[int, int]:
    """How many of `side` pixels are kept, and how many, at most `most`, they become."""
    kept = max(1, round(most / factor))
    return (kept, most) if kept < side else (side, min(most, max(1, round(side * factor))))


def moved(view: tuple[Any, Target], move: Callable[[Any], Tensor]) -> View:
    """Image, boxes and masks, moved alike."""
    image_CHW, target = view
    masks_NHW = None if target.masks is None else move(target.masks)
    return move(image_CHW), replace(target, boxes=move(target.boxes), masks=masks_NHW)


def padded_to_input(image_CHW: Tensor, spec: InputSpec) -> Tensor:
    """To the model's size, with the mean colour, which is 0 once it is normalised."""
    height, width = image_CHW.shape[-2:]
    colour = list(spec.mean) if image_CHW.is_floating_point() else [round(255 * mean) for mean in spec.mean]
    return F.pad(image_CHW, [0, 0, spec.size[1] - width, spec.size[0] - height], fill=colour)


def tidied(target: Target, size: tuple[int, int]) -> Target:
    """Masks of `size` and boxes around them; without the objects of which less than a pixel is left."""
    boxes_N4 = F.clamp_bounding_boxes(target.boxes)
    if target.masks is not None:
        high, wide = target.masks.shape[-2:]
        masks_NHW = F.pad(target.masks, [0, 0, size[1] - wide, size[0] - high]) >= HALF
        target = replace(target, masks=masks_NHW)
        boxes_N4 = tight_boxes(masks_NHW)
    boxes = tv_tensors.BoundingBoxes(boxes_N4, format="XYXY", canvas_size=size)
    _, keep_N = F.sanitize_bounding_boxes(boxes, min_size=LEAST_SIDE)
    return replace(target, boxes=boxes.as_subclass(Tensor)).select(keep_N)


def tight_boxes(masks_NHW: Tensor) -> Tensor:
    """bool (N, H, W) -> x1, y1, x2, y2 (N, 4), the last two exclusive; of an empty mask, zeros."""
    corners = []
    for lines_NL in (masks_NHW.any(1), masks_NHW.any(2)):  # columns, rows
        first = lines_NL.byte().argmax(1)
        last = lines_NL.shape[1] - lines_NL.flip(1).byte().argmax(1)
        corners.append((first, last))
    (x1, x2), (y1, y2) = corners
    return torch.stack([x1, y1, x2, y2], 1).float() * masks_NHW.any(2).any(1)[:, None]


def pasted(below: View, above: View) -> View:
    """Each object of `above` (bool masks), with even odds, on top of `below`."""
    (image_CHW, target), (other_CHW, other) = below, above
    if image_CHW.dtype != other_CHW.dtype:  # of more than 8 bits and of 8
        image_CHW, other_CHW = (F.to_dtype(one, torch.float32, scale=True) for one in (image_CHW, other_CHW))
    other = other.select(torch.rand(len(other)) < 0.5)
    assert target.masks is not None and other.masks is not None  # `DetectionAugment.checked` saw to it
    assert target.size is not None and other.size is not None  # `jittered` said them
    cover_HW = other.masks.any(0)
    masks_NHW = target.masks & ~cover_HW
    seen_N = masks_NHW.sum((1, 2)) > LEAST_SEEN * target.masks.sum((1, 2))
    size = max(target.size[0], other.size[0]), max(target.size[1], other.size[1])
    target = replace(target, masks=masks_NHW, boxes=tight_boxes(masks_NHW)).select(seen_N)
    columns = ("boxes", "labels", "iscrowd", "masks")
    joined: dict[str, Any] = {name: torch.cat([getattr(target, name), getattr(other, name)]) for name in columns}
    return torch.where(cover_HW, other_CHW, image_CHW), replace(target, **joined, size=size)


def happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def up_to(most: int) -> int:
    return int(torch.randint(most + 1, ()))
