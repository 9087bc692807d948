"""The Lightning side of the image sets: which images, how they are prepared, in what batches."""

from PIL import Image
from torch import Tensor

from longvision.data.faults import Prepared, collate
from longvision.data.io.images import Channels
from longvision.data.sources.digits import DigitsSource
from longvision.data.sources.folder import FolderSource
from longvision.data.sources.parquet import ParquetSource
from longvision.data.sources.scattered import COUNTS
from longvision.data.sources.scattered_sets import ScatteredMost
from longvision.data.sources.sets import Source, Split
from longvision.data.splits import SplitData
from longvision.data.transforms.classification import DIGITS_AUGMENT, Augment, batch_mixup, train_transform
from longvision.data.transforms.preprocess import Preprocess

Batch = tuple[Tensor, Tensor]

DEFAULT_AUGMENT = Augment()
SCATTERED_AUGMENT = Augment(crop_scale=None, flip=0.0)  # a crop could change the answer, a mirrored digit is none


class ClassificationData(SplitData):
    """Batches of images (B, C, H, W) float32 and labels (B,) int64 from any source of labelled images.

    With mixup or CutMix, training labels become soft targets (B, K) once the batch is on its device.
    """

    collate = staticmethod(collate)

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        augment: Augment = DEFAULT_AUGMENT,
        batch_size: int = 64,
        workers: int | None = None,
        name: str = "the set",
    ) -> None:
        super().__init__(source, preprocess, batch_size, workers, name)
        self.augment = augment
        self.num_classes = len(source.classes)
        self._mix = batch_mixup(augment, self.num_classes)

    def dataset(self, split: Split) -> Prepared:
        if split == "train":
            transform = train_transform(self.augment, self.preprocess)
        else:
            transform = self.preprocess.transform()
        return Prepared(self.images(split), transform, f"{self.name} ({split})")

    def sample(self, split: Split, index: int) -> tuple[Image.Image, Tensor, int]:
        """One picture, what an evaluated model sees of it (C, H, W), and its label."""
        image, label = self.images(split)[index]
        return image, self.preprocess.transform()(image), label

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self._mix is not None and self.trainer is not None and self.trainer.training:
            return self._mix(*batch)
        return batch


class DigitsData(ClassificationData):
    """The 1,797 handwritten digits inside scikit-learn: 1,293 train, 144 validate, 360 by other writers test.

    Args:
        size: side of the square the 8x8 scans are enlarged to, or height and width.
        channels: 1 for grey, 3 for colour.
        batch_size: images a step.
        workers: processes that load images; 0 loads in the main one, which is fastest for scans this small.
        augment: how training images are varied.
        crop: the centre of the image that is kept in evaluation, as a share of its side.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
    """

    most_workers = 0

    def __init__(
        self,
        size: int | tuple[int, int] = 32,
        channels: Channels = 1,
        batch_size: int = 64,
        workers: int | None = None,
        augment: Augment = DIGITS_AUGMENT,
        crop: float = 1.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        preprocess = Preprocess(both_sides(size), channels, crop, mean or (), std or ())
        super().__init__(DigitsSource(channels), preprocess, augment, batch_size, workers, "digits")


class FolderData(ClassificationData):
    """Images in one folder per class.

    Args:
        path: a folder with train/<class>/ and, where they exist, val/<class>/ and test/<class>/; or with
            <class>/ alone, of which a tenth validates.
        size: side of the model's square input, or its height and width.
        channels: 1 for grey, 3 for colour.
        batch_size: images a step.
        workers: processes that load images; at most 4, one a core, when left out.
        augment: how training images are varied.
        crop: the centre of the image that is kept in evaluation, as a share of its shorter side.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
        seed: draws the images that validate where no folder holds them.
    """

    def __init__(
        self,
        path: str,
        size: int | tuple[int, int] = 224,
        channels: Channels = 3,
        batch_size: int = 64,
        workers: int | None = None,
        augment: Augment = DEFAULT_AUGMENT,
        crop: float = 0.875,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
    ) -> None:
        preprocess = Preprocess(both_sides(size), channels, crop, mean or (), std or ())
        super().__init__(FolderSource(path, channels, seed), preprocess, augment, batch_size, workers, path)


class ParquetData(ClassificationData):
    """A Hugging Face image set in local Parquet files; takes as much memory as the files take on disk.

    Args:
        path: a folder with train*.parquet and, where they exist, val*.parquet and test*.parquet, or with
            data/ that holds them; without validation files, a tenth of the training images validates.
        size: side of the model's square input, or its height and width.
        channels: 1 for grey, 3 for colour.
        batch_size: images a step.
        workers: processes that load images; at most 4, one a core, when left out.
        augment: how training images are varied.
        crop: the centre of the image that is kept in evaluation, as a share of its shorter side.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
        seed: draws the images that validate where no file holds them.
        image_column: the column of encoded images.
        label_column: the column of class numbers or class names.
    """

    def __init__(
        self,
        path: str,
        size: int | tuple[int, int] = 224,
        channels: Channels = 3,
        batch_size: int = 64,
        workers: int | None = None,
        augment: Augment = DEFAULT_AUGMENT,
        crop: float = 0.875,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
        image_column: str = "image",
        label_column: str = "label",
    ) -> None:
        preprocess = Preprocess(both_sides(size), channels, crop, mean or (), std or ())
        source = ParquetSource(path, channels, seed, image_column, label_column)
        super().__init__(source, preprocess, augment, batch_size, workers, path)


class MostDigitsData(ClassificationData):
    """Handwritten digits scattered over textured pictures, to be counted: 200 validate, 400 of other writers test.

    Args:
        size: side of the square pictures, or height and width; 32 pixels or more.
        channels: 1 for grey, 3 for colour.
        batch_size: pictures a step.
        workers: processes that make pictures; at most 4, one a core, when left out.
        pictures: how many train.
        seed: another one is another set.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 256,
        channels: Channels = 1,
        batch_size: int = 16,
        workers: int | None = None,
        pictures: int = COUNTS["train"],
        seed: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        preprocess = Preprocess(both_sides(size), channels, 1.0, mean or (), std or ())
        source = ScatteredMost(preprocess.size, channels, pictures, seed)
        super().__init__(source, preprocess, SCATTERED_AUGMENT, batch_size, workers, "scattered-digits")


def both_sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
