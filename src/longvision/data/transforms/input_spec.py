"""From an image to what a model sees: one deterministic way, stored beside the weights in plain numbers.

Loads no torch: a wrong size is told before it.
"""

import math
import warnings
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from PIL import Image

from longvision.data.io.deep import AnyImage, DeepImage, Range, Seen
from longvision.data.io.images import Channels, as_channels
from longvision.data.io.limits import without_pillows_limit
from longvision.data.packing import grids_of
from longvision.errors import UserError
from longvision.types import Size

if TYPE_CHECKING:
    from torch import Tensor

Resize = Literal["crop", "none", "short", "fit", "area"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_CHANNELS = (1, 3)  # for which its mean and std mean something
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # Pillow's names


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes a model's input.

    Args:
        size: height and width of a training image, pixels; where `resize` is "crop", of every image.
        channels: 1 for grey, 3 for colour, or as many as the files have.
        mean: mean of each channel on the scale 0..1; ImageNet's when empty, for 1 or 3 channels.
        std: standard deviation of each channel; ImageNet's when empty, for 1 or 3 channels.
        resize: of an image in evaluation. "crop": it covers size / crop, of which the centre is kept. "none": as it was
            taken. "short": its shorter side becomes that of `size`. "fit": as large as fits into `size`. "area": in its
            own proportions and in whole patches, no more of them than `most_patches`.
        crop: the centre of the image that "crop" keeps, as a share of its shorter side.
        interpolation: "bicubic", "bilinear", "nearest", "lanczos", "box" or "hamming"; when empty, bicubic for "crop"
            and bilinear for the others.
        range: what becomes 0 and 1 of images of more than 8 bits, see `DeepImage.scaled`.
        patch: side of a patch, pixels, for "area".
        tokens: the most patches of an image, for "area"; None for as many as `size` has.
        seen: of training images, each type of values with the highest one, and the highest one that 99 in 100 images
            reach; 255 of 8 bits. Images of another type, or far darker ones, are told. Empty where it is not known.

    Raises:
        UserError: values that no model can use.
    """

    size: Size
    channels: Channels = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: Resize = "crop"
    crop: float = 0.875
    interpolation: str = ""
    range: Range | None = None
    patch: int = 1
    seen: tuple[Seen, ...] = ()
    tokens: int | None = None

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels < 1:
            raise UserError(f"channels {self.channels}: expected 1 (grey), 3 (colour) or as many as the files have")
        # JSON and YAML have lists only; a frozen dataclass must stay hashable
        self._set("size", _numbers("size", self.size))
        self._set("mean", _numbers("mean", self.mean) or _imagenet(IMAGENET_MEAN, self.channels))
        self._set("std", _numbers("std", self.std) or _imagenet(IMAGENET_STD, self.channels))
        self._set("interpolation", self.interpolation or ("bicubic" if self.resize == "crop" else "bilinear"))
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"size {self.size}: expected (height, width), both at least 1")
        for word, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels and (values or self.channels in IMAGENET_CHANNELS):
                raise UserError(f"{word} has {len(values)} values: expected one a channel, {self.channels}")
        if min(self.std, default=1) <= 0:
            raise UserError(f"std {self.std}: expected values above 0, the image is divided by them")
        if self.resize not in get_args(Resize):
            raise UserError(f"resize {self.resize!r} is unknown: choose {', '.join(get_args(Resize))}")
        if type(self.patch) is not int or not 1 <= self.patch <= min(self.size):
            raise UserError(f"patch {self.patch}: expected a side in pixels, up to that of size {self.size}")
        if self.tokens is not None and (type(self.tokens) is not int or self.tokens < 1):
            raise UserError(f"tokens {self.tokens}: expected the most patches of an image, at least 1")
        if not 0 < self.crop <= 1:
            raise UserError(f"crop {self.crop}: expected a share of the image, above 0 and at most 1")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")
        self._set("range", _checked_range(self.range))
        self._set("seen", tuple((str(dtype), float(high), float(reached)) for dtype, high, reached in self.seen))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The inverse of `dataclasses.asdict`, also after a way through JSON. Raises UserError for anything else."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or "size" not in values:
            raise UserError("preprocessing needs a size: add the height and width of the model's input")
        if unknown := sorted(set(values) - set(known)):
            raise UserError(f"preprocessing has no {', '.join(unknown)}: expected {', '.join(known)}")
        spec = cls(**values)
        if len(spec.mean) != spec.channels or len(spec.std) != spec.channels:
            raise UserError(f"preprocessing of {spec.channels} channels needs a mean and a std of each")
        return spec

    @property
    def most_patches(self) -> int:
        """Of an image of "area"."""
        rows, columns = (side // self.patch for side in self.size)
        return rows * columns if self.tokens is None else self.tokens

    def within(self, tokens: int, patch: int) -> Self:
        """Images keep their proportions and have at most so many patches of that side, pixels."""
        return replace(self, resize="area", patch=patch, tokens=tokens)

    def evaluated_size(self, height: int, width: int) -> Size:
        """Height and width to which an image of that size is resized in evaluation, before any crop."""
        if self.resize == "none":
            return height, width
        if self.resize == "crop":
            return _cover(height, width, *(int(side / self.crop) for side in self.size))
        if self.resize == "area":
            rows, columns = grids_of(np.array([[height, width]]), np.array([self.most_patches]))[0].tolist()
            return rows * self.patch, columns * self.patch
        if self.resize == "short":
            scale = min(self.size) / min(height, width)
        else:
            scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def opened(self, image: AnyImage) -> AnyImage:
        """In the spec's channels; values of more than 8 bits as float32 from 0 to 1. Raises UnreadableImage."""
        image = as_channels(image, self.channels)
        return image.scaled(self.range) if isinstance(image, DeepImage) else image

    def shown(self, image: AnyImage) -> Image.Image:
        """To look at: 8 bits, grey or the first three channels."""
        return image if isinstance(image, Image.Image) else self.opened(image).shown()  # type: ignore[union-attr]

    def evaluated(self, image: AnyImage) -> "Tensor":
        """An image as an evaluated model sees it: normalised float32 (C, H, W)."""
        image = self.opened(image)
        self._tell_misfit(image)
        if self.resize == "crop":
            image = self._without_far_ends(image)
        size = self.evaluated_size(image.height, image.width)
        if size != (image.height, image.width):
            image = image.resize(size[::-1], Image.Resampling[self.interpolation.upper()])
        return self.normalised(_centre(image, *self.size) if self.resize == "crop" else image)

    def _tell_misfit(self, image: AnyImage) -> None:
        """Values of another type than those of training, or of another depth."""
        dtype = image.dtype if isinstance(image, DeepImage) else "uint8"
        reached = {known: reached for known, _, reached in self.seen}
        if reached and dtype not in reached and (dtype == "uint8" or self.range):  # else `scaled` told
            read = "0 to 255" if dtype == "uint8" else f"data.range {self.range}"
            warnings.warn(
                f"images of {dtype} values are read by {read}, those of training had {', '.join(reached)}: see whether "
                "they are as bright",
                stacklevel=2,
            )
        if isinstance(image, DeepImage):
            image.tell_misfit(self.range, reached.get(dtype, 0.0))

    def _without_far_ends(self, image: AnyImage) -> AnyImage:
        """Cut a strip to 8 times the input's proportions: whole, 1 x 20,000 pixels grow into gigabytes."""
        height, width = (int(side / self.crop) for side in self.size)
        return _centre(
            image, min(image.height, -(-8 * image.width * height // width)),
            min(image.width, -(-8 * image.height * width // height)),
        )  # fmt: skip

    def normalised(self, image: "AnyImage | Tensor") -> "Tensor":
        """An image, or a tensor (C, H, W) of bytes or of floats from 0 to 1, -> normalised float32 of the same size."""
        import torch
        from torchvision.transforms.v2 import functional as F

        if len(self.mean) != self.channels:
            raise UserError(
                f"{self.channels} channels have no usual mean and std: give data.mean and data.std, a number a channel"
            )
        x_CHW = F.to_dtype(as_tensor(image), torch.float32, scale=True)
        return F.normalize(x_CHW, list(self.mean), list(self.std)).as_subclass(torch.Tensor)


def as_tensor(image: "AnyImage | Tensor") -> "Tensor":
    """(C, H, W): bytes of a PIL image, floats of a deep one; a tensor as it is."""
    import torch
    from torchvision.transforms.v2 import functional as F

    if isinstance(image, DeepImage):
        return torch.from_numpy(np.ascontiguousarray(image.values_HWC.transpose(2, 0, 1)))
    return F.pil_to_tensor(image) if isinstance(image, Image.Image) else image


def _cover(height: int, width: int, tall: int, wide: int) -> Size:
    """The smallest size that covers (tall, wide), proportions kept; for a square as torchvision's `Resize(side)`."""
    if width * tall <= height * wide:
        return height * wide // width, wide
    return tall, width * tall // height


def _centre(image: AnyImage, height: int, width: int) -> AnyImage:
    """The centre of an image at least as large, as torchvision's `CenterCrop` cuts it."""
    if (image.height, image.width) == (height, width):
        return image
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    with without_pillows_limit():
        return image.crop((left, top, left + width, top + height))


def _imagenet(values: tuple[float, ...], channels: Channels) -> tuple[float, ...]:
    if channels not in IMAGENET_CHANNELS:
        return ()
    return values if channels == 3 else (sum(values) / 3,)


def _checked_range(value: Any) -> Range | None:
    if value is None or value in ("dtype", "image"):
        return value
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = (float(end) for end in _numbers("range", value))
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    raise UserError(f"range {value!r}: expected [LOW, HIGH], what becomes black and what white, or dtype or image")


def _numbers(word: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) for value in values):
        raise UserError(f"{word} {values!r}: expected a list of numbers")
    return tuple(values)
