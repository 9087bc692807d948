"""From a picture to what a model sees: one deterministic way, stored beside the weights in plain numbers."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torchvision.transforms import v2

from longvision.data.io.images import Channels, as_channels

Transform = Callable[[Image.Image], Tensor]


class ModelInput:
    """What the ways into a model share: size, channels and their statistics, checked and as plain numbers.

    A base of frozen dataclasses, which declare the fields themselves, in their own order.
    """

    size: tuple[int, int]
    channels: Channels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels {self.channels}: images are read in 1 channel (grey) or 3 (colour)")
        # JSON and YAML have lists only; a frozen dataclass must stay hashable
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "mean", tuple(self.mean) or _imagenet(IMAGENET_DEFAULT_MEAN, self.channels))
        object.__setattr__(self, "std", tuple(self.std) or _imagenet(IMAGENET_DEFAULT_STD, self.channels))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size {self.size}: expected (height, width), both at least 1")
        for word, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{word} has {len(values)} values: expected one a channel, {self.channels}")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: expected values above 0, the image is divided by them")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"preprocessing has no {', '.join(unknown)}: expected {', '.join(known)}")
        if "size" not in values:
            raise ValueError("preprocessing needs a size: add the height and width of the model's input")
        return cls(**values)


@dataclass(frozen=True)
class Preprocess(ModelInput):
    """How an image becomes a model's input.

    Args:
        size: height and width of the input, in pixels.
        channels: 1 for grey, 3 for colour.
        crop: the centre of the image that is kept, as a share of its shorter side.
        mean: mean of each channel on the scale 0..1; ImageNet's when empty.
        std: standard deviation of each channel; ImageNet's when empty.
        interpolation: "bicubic", "bilinear", "nearest", "lanczos", "box" or "hamming".
    """

    size: tuple[int, int]
    channels: Channels = 3
    crop: float = 0.875
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop {self.crop}: expected a share of the image, above 0 and at most 1")
        known = [mode.value for mode in v2.InterpolationMode]
        if self.interpolation not in known:
            raise ValueError(f"interpolation {self.interpolation!r}: expected one of {', '.join(known)}")

    @property
    def resampling(self) -> v2.InterpolationMode:
        return v2.InterpolationMode(self.interpolation)

    def to_tensor(self) -> v2.Compose:
        """The last steps, the same in training and evaluation: PIL image -> normalised float32 (C, H, W)."""
        return v2.Compose(
            [
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )

    def transform(self) -> Transform:
        """Evaluation: resize until the image covers size / crop, cut the centre, normalise."""
        height, width = (int(side / self.crop) for side in self.size)
        return v2.Compose(
            [
                ToChannels(self.channels),
                Cover(height, width, self.resampling),
                v2.CenterCrop(self.size),
                self.to_tensor(),
            ]
        )


@dataclass(frozen=True)
class ToChannels:
    channels: Channels

    def __call__(self, image: Image.Image) -> Image.Image:
        return as_channels(image, self.channels)


@dataclass(frozen=True)
class Cover:
    """Resize to the smallest size that covers (height, width), proportions kept.

    For a square target this is torchvision's `Resize(side)`, rounding included.
    """

    height: int
    width: int
    interpolation: v2.InterpolationMode

    def __call__(self, image: Image.Image) -> Image.Image:
        image = self._without_far_ends(image)
        if image.width * self.height <= image.height * self.width:
            size = [image.height * self.width // image.width, self.width]
        else:
            size = [self.height, image.width * self.height // image.height]
        resized: Image.Image = v2.functional.resize(image, size, self.interpolation, antialias=True)
        return resized

    def _without_far_ends(self, image: Image.Image) -> Image.Image:
        """Cut a strip to 8 times the target's proportions: whole, 1 x 20,000 pixels grow into gigabytes."""
        height = min(image.height, -(-8 * image.width * self.height // self.width))
        width = min(image.width, -(-8 * image.height * self.width // self.height))
        if (height, width) == (image.height, image.width):
            return image
        cut: Image.Image = v2.functional.center_crop(image, [height, width])
        return cut


def _imagenet(values: tuple[float, ...], channels: Channels) -> tuple[float, ...]:
    return values if channels == 3 else (sum(values) / 3,)
