"""What segmentation and detection share: how a picture is fitted and normalised, what a set offers, in what batches."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, get_args

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from longvision.data.io.images import Channels, as_channels
from longvision.data.sources.sets import Split
from longvision.data.splits import SplitData
from longvision.data.transforms.preprocess import ModelInput
from longvision.types import Colour

Resize = Literal["none", "short", "fit"]
Target = TypeVar("Target")
Given = TypeVar("Given", covariant=True)
Sample = tuple[Tensor, Target]


@dataclass(frozen=True)
class DensePreprocess(ModelInput):
    """How a picture becomes a model's input, proportions kept.

    Args:
        size: height and width of a training image, pixels.
        channels: 1 for grey, 3 for colour.
        mean: mean of each channel on the scale 0..1; ImageNet's when empty.
        std: standard deviation of each channel; ImageNet's when empty.
        resize: of a picture in evaluation. "none": as it was taken. "short": its shorter side becomes that of `size`.
            "fit": as large as fits into `size`.
    """

    size: tuple[int, int]
    channels: Channels = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: Resize = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize not in get_args(Resize):
            raise ValueError(f"resize {self.resize!r} is unknown: choose {', '.join(get_args(Resize))}")

    def evaluated_size(self, height: int, width: int) -> tuple[int, int]:
        """What a picture of that size is resized to in evaluation."""
        if self.resize == "none":
            return height, width
        if self.resize == "short":
            scale = min(self.size) / min(height, width)
        else:
            scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def normalise(self) -> v2.Compose:
        """Image -> normalised float32 (C, H, W), the size unchanged."""
        return v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]
        )

    def evaluated(self, image: Image.Image) -> Tensor:
        """A picture as an evaluated model sees it: (C, H, W)."""
        image = as_channels(image, self.channels)
        size = self.evaluated_size(image.height, image.width)
        if size != (image.height, image.width):
            image = v2.functional.resize(image, list(size), v2.InterpolationMode.BILINEAR, antialias=True)
        return self.normalise()(image).as_subclass(Tensor)


class DenseSet(Protocol[Given]):
    """Pictures with what is in them, at the pictures' own size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Given]: ...

    def name(self, index: int) -> str:
        """The picture's file, for messages."""
        ...


class DenseSource(Protocol[Given]):
    """A place that holds up to three splits of one problem."""

    classes: list[str]
    palette: list[Colour]
    has_test: bool

    def split(self, split: Split) -> DenseSet[Given]: ...

    def check(self, split: Split) -> None:
        """Raise ValueError, one sentence, for labels that cannot be right."""
        ...


class Prepared(Dataset[Sample[Target]], Generic[Target]):
    """A set's pictures and targets, transformed together."""

    def __init__(self, pictures: DenseSet[Target], transform: Callable[[Image.Image, Target], Sample[Target]]) -> None:
        self.pictures = pictures
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample[Target]:
        return self.transform(*self.pictures[index])


def as_lists(samples: list[Sample[Target]]) -> tuple[list[Tensor], list[Target]]:
    """Samples -> images and targets: they may differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class DenseData(SplitData, Generic[Target]):
    """Batches of images, list of (C, H, W) float32, and targets, list, from any source of pictures with dense labels.

    A subclass says how pictures and targets are transformed together: `train_transform` and `evaluate`.
    """

    collate = staticmethod(as_lists)

    def __init__(
        self,
        source: DenseSource[Target],
        preprocess: DensePreprocess,
        batch_size: int,
        workers: int | None,
        name: str,
    ) -> None:
        super().__init__(source, preprocess, batch_size, workers, name)
        self.palette = source.palette
        self.evaluation_batch = 1  # pictures differ in size

    def train_transform(self, image: Image.Image, target: Target) -> Sample[Target]:
        raise NotImplementedError

    def evaluate(self, image: Image.Image, target: Target) -> Sample[Target]:
        """The image as a model sees it; the target at the picture's own size."""
        return self.preprocess.evaluated(image), target

    def open(self, split: Split) -> DenseSet[Target]:
        """Labels that cannot be right are told before the first step."""
        self.source.check(split)
        return self.source.split(split)

    def dataset(self, split: Split) -> Prepared[Target]:
        return Prepared(self.images(split), self.train_transform if split == "train" else self.evaluate)

    def sample(self, split: Split, index: int) -> tuple[Image.Image, Tensor, Target]:
        """One picture, what an evaluated model sees of it (C, H, W), and its target."""
        image, target = self.images(split)[index]
        seen, target = self.evaluate(image, target)
        return image, seen, target

    def train_dataloader(self) -> DataLoader:
        ranks = self.trainer.world_size if self.trainer else 1
        if len(self.images("train")) // ranks < self.batch_size:
            warnings.warn(f"{self.name} has fewer training images than one batch ({self.batch_size})", stacklevel=2)
        return super().train_dataloader()
