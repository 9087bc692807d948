"""How training images are varied, task by task: plain numbers, checked here. The code that varies loads with torch."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longvision.errors import UserError

if TYPE_CHECKING:
    from longvision.data.sources.base import Source
    from longvision.data.transforms.base import Transforms
    from longvision.data.transforms.input_spec import InputSpec

RAND_AUGMENT = re.compile(r"rand(-((m|n|p|mstd|mmax|inc)\d[\d.]*|mstdinf|t[a-z0-9]+))*")


@dataclass(frozen=True)
class Augment:
    """How training images of a classification are varied; 0 or None switches a step off.

    Args:
        crop_scale: least and most share of the area that a random crop keeps; None resizes the whole image.
        flip: probability of mirroring left and right.
        rotate: largest rotation to either side, in degrees.
        shift: largest shift in each direction, as a share of the side.
        zoom: largest change of scale: sizes from 1 - zoom to 1 + zoom.
        rand_augment: timm's RandAugment string, such as rand-m9-mstd0.5-inc1.
        erase: probability of erasing a random rectangle.
        mixup: mixup's alpha.
        cutmix: CutMix's alpha; with mixup, each batch draws one of the two.
        repeats: how often an epoch shows an image, varied otherwise each time (repeated augmentation); it shows as many
            samples as there are training images in any case, so with 3 a third of the images, as DeiT's.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    flip: float = 0.5
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    rand_augment: str | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.crop_scale is not None:
            least, most = self.crop_scale
            if not 0 < least <= most <= 1:
                raise UserError(f"crop_scale {self.crop_scale}: expected two shares, 0 < least <= most <= 1")
        _check_shares(self, "flip", "shift", "erase")
        for word in ("rotate", "mixup", "cutmix"):
            if getattr(self, word) < 0:
                raise UserError(f"{word} {getattr(self, word)}: expected 0 (off) or more")
        if self.repeats < 1:
            raise UserError(f"repeats {self.repeats}: expected 1 (each image once an epoch) or more")
        if not 0 <= self.zoom < 1:
            raise UserError(f"zoom {self.zoom}: expected 0 (off) or more, and less than 1")
        if self.rand_augment and not RAND_AUGMENT.fullmatch(self.rand_augment):
            raise UserError(
                f"rand_augment {self.rand_augment!r}: expected a RandAugment string of timm's, "
                "such as rand-m9-mstd0.5-inc1"
            )

    def transforms(self, spec: "InputSpec", source: "Source[int]") -> "Transforms[int]":
        if self.rand_augment and spec.channels not in (1, 3):
            raise UserError(
                f"rand_augment works on images of 8 bits in 1 or 3 channels, the model takes {spec.channels}: switch "
                "it off (--data.augment.rand_augment null)"
            )
        if source.multilabel and (self.mixup or self.cutmix):
            raise UserError("mixup and cutmix are for one class an image: set both to 0 for images of several labels")
        if spec.resize == "area":
            from longvision.data.transforms.packing import PackedTransforms

            return PackedTransforms(self, spec, len(source.classes))
        from longvision.data.transforms.classification import ClassificationTransforms

        return ClassificationTransforms(self, spec, len(source.classes))


@dataclass(frozen=True)
class DenseAugment:
    """How training images and their masks are varied.

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
        _check_scale(self)
        _check_shares(self, "flip")
        if not 0 <= self.photometric <= 2:
            raise UserError(f"photometric {self.photometric}: expected a strength from 0 (off) to 2")
        if not 0 < self.most <= 1:
            raise UserError(f"most {self.most}: expected a share above 0, up to 1 (off)")

    def transforms(self, spec: "InputSpec", source: "Source[Any]") -> "Transforms[Any]":
        from longvision.data.transforms.segmentation import SegmentationTransforms

        return SegmentationTransforms(self, spec)


@dataclass(frozen=True)
class DetectionAugment:
    """How training images and their objects are varied; 0 switches a step off.

    Args:
        scale: smallest and largest size of an image, as a share of the one that fits into the model's input. What is
            larger is cropped at random, what is smaller is padded on the right and below.
        flip: probability of mirroring left and right.
        copy_paste: probability of pasting objects of another training image; it needs masks.
        photometric: probability of changing colours: brightness by up to 12.5 %, contrast and saturation by 50 % and
            hue by 5 % of a turn, each with even odds; channels are never swapped.
    """

    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    copy_paste: float = 0.0
    photometric: float = 0.0

    def __post_init__(self) -> None:
        _check_scale(self)
        _check_shares(self, "flip", "copy_paste", "photometric")

    def checked(self, source: "Source[Any]") -> "Source[Any]":
        """The source. Raises UserError where objects would be pasted that have no masks."""
        if self.copy_paste and not source.has_masks:
            raise UserError(
                f"copy_paste {self.copy_paste}: {source.name} has no masks to cut objects out by, set it to 0"
            )
        return source

    def transforms(self, spec: "InputSpec", source: "Source[Any]") -> "Transforms[Any]":
        from longvision.data.transforms.detection import DetectionTransforms

        self.checked(source)
        return DetectionTransforms(self, spec)


AnyAugment = Augment | DenseAugment | DetectionAugment


def _check_shares(augment: AnyAugment, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(augment, name) <= 1:
            raise UserError(f"{name} {getattr(augment, name)}: expected a number from 0 to 1")


def _check_scale(augment: DenseAugment | DetectionAugment) -> None:
    object.__setattr__(augment, "scale", tuple(augment.scale))  # YAML has lists only
    if len(augment.scale) != 2 or not 0 < augment.scale[0] <= augment.scale[1]:
        raise UserError(f"scale {augment.scale}: expected two factors, 0 < smallest <= largest")
