"""What training does to an image and to a batch that evaluation does not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from timm.data import Mixup
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import v2

from longvision.data.transforms.preprocess import Preprocess, ToChannels, Transform


@dataclass(frozen=True)
class Augment:
    """How training images are varied; 0 or None switches a step off.

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

    def __post_init__(self) -> None:
        if self.crop_scale is not None:
            least, most = self.crop_scale
            if not 0 < least <= most <= 1:
                raise ValueError(f"crop_scale {self.crop_scale}: expected two shares, 0 < least <= most <= 1")
        for word in ("flip", "shift", "erase"):
            if not 0 <= getattr(self, word) <= 1:
                raise ValueError(f"{word} {getattr(self, word)}: expected a number from 0 to 1")
        for word in ("rotate", "mixup", "cutmix"):
            if getattr(self, word) < 0:
                raise ValueError(f"{word} {getattr(self, word)}: expected 0 (off) or more")
        if not 0 <= self.zoom < 1:
            raise ValueError(f"zoom {self.zoom}: expected 0 (off) or more, and less than 1")
        if self.rand_augment:
            _rand_augment(self.rand_augment, {})


# An upright digit has a top, a left and a right: it may lean, move and grow a little, never be mirrored.
DIGITS_AUGMENT = Augment(crop_scale=None, flip=0.0, rotate=10.0, shift=0.1, zoom=0.1)


def train_transform(augment: Augment, preprocess: Preprocess) -> Transform:
    """PIL image -> augmented, normalised float32 (C, H, W)."""
    steps: list[Callable[..., Any]] = [ToChannels(preprocess.channels), *_geometry(augment, preprocess)]
    if augment.rand_augment:
        steps.append(ColourRandAugment(augment.rand_augment, preprocess))
    steps.append(preprocess.to_tensor())
    if augment.erase:
        # normal noise: after normalisation, pixels that look like neither class
        steps.append(RandomErasing(augment.erase, mode="pixel", device="cpu"))
    return v2.Compose(steps)


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

    def __init__(self, policy: str, preprocess: Preprocess) -> None:
        grey_or_rgb = tuple(round(255 * value) for value in preprocess.mean)
        self.augment = _rand_augment(
            policy,
            {
                "translate_const": int(0.45 * min(preprocess.size)),  # timm's own choice for its recipes
                "img_mean": grey_or_rgb * (3 // len(grey_or_rgb)),
            },
        )

    def __call__(self, image: Image.Image) -> Image.Image:
        varied: Image.Image = self.augment(image.convert("RGB"))
        return varied.convert(image.mode)


def _geometry(augment: Augment, preprocess: Preprocess) -> list[Callable[..., Any]]:
    """Crop, turn, move, zoom and flip, on the PIL image."""
    steps: list[Callable[..., Any]] = []
    size, interpolation = preprocess.size, preprocess.resampling
    if augment.crop_scale is None:
        steps.append(v2.Resize(size, interpolation, antialias=True))
    else:
        scale = augment.crop_scale
        steps.append(v2.RandomResizedCrop(size, scale, interpolation=interpolation, antialias=True))
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
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    return steps


def _rand_augment(policy: str, settings: dict[str, Any]) -> RandAugment:
    try:
        augment = rand_augment_transform(policy, settings)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"rand_augment {policy!r}: expected a RandAugment string of timm's, such as rand-m9-mstd0.5-inc1"
        ) from error
    for step in augment.ops:
        if step.name.startswith("Posterize"):
            step.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """At its strongest timm keeps no bit at all: a black image, and an error from newer Pillows."""
    return ImageOps.posterize(image, min(max(bits, 1), 8))
