"""Options that sources of images share, `--data.…`. Loads no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from longvision.data.augment import AnyAugment, Augment, DetectionAugment
from longvision.data.io.deep import Seen
from longvision.data.io.images import Channels
from longvision.data.loading import LoaderConfig, images_of_sizes
from longvision.data.packing import PackingConfig
from longvision.data.sources.base import Source, Trained
from longvision.data.transforms.input_spec import InputSpec, Resize
from longvision.errors import UserError

if TYPE_CHECKING:
    from longvision.data.datamodule import DataModule

SomeSource = TypeVar("SomeSource", bound=Source[Any])
AUGMENT, DETECTION_AUGMENT = Augment(), DetectionAugment()


@dataclass(frozen=True, kw_only=True)
class DataConfig(LoaderConfig):
    """What all sources share. A subclass adds where its images are, and the kind of augmentation that its task has.

    Args:
        size: side of the square input that training images fill, or its height and width, pixels.
        channels: 1 for grey, 3 for colour, or as many as the files have.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out, for other than 1 or 3 channels measured.
        std: standard deviation of each channel; ImageNet's when left out, for other than 1 or 3 channels measured.
        range: black and white of images of more than 8 bits: [LOW, HIGH], dtype (all that their type holds; floats: 0
            and 1) or image (each one's own ends); when left out, that of the training images, which is said.
        augment: how training images are varied.
    """

    size: int | tuple[int, int] = 224
    channels: Channels = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    range: tuple[float, float] | Literal["dtype", "image"] | None = None
    augment: AnyAugment = AUGMENT
    resize: ClassVar[Resize] = "fit"  # of an image in evaluation, see `InputSpec`
    crop: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.input().size  # raises UserError, as all of this
        packs = isinstance(self, PackingConfig) and self.pack
        if self.total_batch and (self.sizes or packs):
            raise UserError("total_batch counts images of one size: leave it out with sizes or pack")
        if not packs:
            images_of_sizes(size, self.sizes, self.batch_size)

    def input(self) -> InputSpec:
        """How an image becomes a model's input."""
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        return InputSpec(size, self.channels, self.mean or (), self.std or (), self.resize, self.crop, range=self.range)

    def source(self) -> Source[Any]:
        """The files, listed; loads no torch. Raises UserError for what is wrong with them."""
        raise NotImplementedError

    def tolerant(self, source: SomeSource) -> SomeSource:
        """Told what share of its images may be unreadable."""
        source.tolerated = self.unreadable
        return source

    def evaluation_source(self, trained: Trained) -> Source[Any]:
        """For a model that was trained elsewhere: with its classes, where the source can. Raises as `source`."""
        takes = "trained" in signature(self.source).parameters
        return self.source(trained) if takes else self.source()  # type: ignore[call-arg]

    def build(self, source: Source[Any] | None = None, seen: Sequence[Seen] = ()) -> "DataModule":
        """The data module of these options; `source` is what `source()` gave, when it was called before; `seen` is of
        a model that is trained already, see `InputSpec`."""
        from longvision.data.datamodule import DataModule

        return DataModule(source or self.source(), replace(self.input(), seen=tuple(seen)), self.augment, self)


@dataclass(frozen=True, kw_only=True)
class HoldOutConfig:
    """For sets that may come without validation images.

    Args:
        seed: draws those that validate from the training images, where the set has none for it.
    """

    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(DataConfig, PackingConfig):
    """Images with one class each.

    Args:
        crop: the centre of the image that is kept in evaluation, as a share of its shorter side.
    """

    resize: ClassVar[Resize] = "crop"
    crop: float = 0.875  # type: ignore[misc]
    augment: Augment = AUGMENT

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.input().size, self.sizes)
        if self.pack and (self.augment.mixup or self.augment.cutmix):
            raise UserError(
                "mixup and cutmix lay images of one size over each other: switch them off, or leave data.pack out"
            )

    def input(self) -> InputSpec:
        spec = super().input()
        return replace(spec, resize="area", patch=self.patch or 1) if self.pack else spec


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(DataConfig):
    """Images with objects."""

    size: int | tuple[int, int] = 512
    batch_size: int = 8
    augment: DetectionAugment = DETECTION_AUGMENT
