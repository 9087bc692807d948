"""Options that all sources share: batches, what a model sees, and how a data module is made of them. Loads no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longvision.data.augment import AnyAugment, Augment
from longvision.data.io.images import Channels
from longvision.data.sources.base import Source
from longvision.data.transforms.input_spec import InputSpec, Resize
from longvision.errors import UserError

if TYPE_CHECKING:
    from longvision.data.datamodule import DataModule

AUGMENT = Augment()


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """In what batches images are loaded.

    Args:
        batch_size: training images a step.
        workers: processes that load images; 0 loads in the main one; at most 4, one a core, when left out.
    """

    batch_size: int = 64
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: expected at least 1 image a batch")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers {self.workers}: expected 0 (load in the main process) or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig(LoaderConfig):
    """What all sources share. A subclass adds where its images are, and the kind of augmentation that its task has.

    Args:
        size: side of the square input that training images fill, or its height and width, pixels.
        channels: 1 for grey, 3 for colour.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
        augment: how training images are varied.
    """

    size: int | tuple[int, int] = 224
    channels: Channels = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: AnyAugment = AUGMENT

    def __post_init__(self) -> None:
        super().__post_init__()
        self.input()  # raises UserError

    def input(self) -> InputSpec:
        """How an image becomes a model's input."""
        return self._input()

    def source(self) -> Source[Any]:
        """The files, listed; loads no torch. Raises UserError for what is wrong with them."""
        raise NotImplementedError

    def build(self, source: Source[Any] | None = None) -> "DataModule":
        """The data module of these options; `source` is what `source()` gave, when it was called before."""
        from longvision.data.datamodule import DataModule

        return DataModule(source or self.source(), self.input(), self.augment, self)

    def _input(self, resize: Resize = "fit", crop: float = 1.0) -> InputSpec:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return InputSpec(size, self.channels, self.mean or (), self.std or (), resize, crop)


@dataclass(frozen=True, kw_only=True)
class HoldOutConfig:
    """For sets that may come without validation images.

    Args:
        seed: draws those that validate from the training images, where the set has none for it.
    """

    seed: int = 0
