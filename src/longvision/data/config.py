"""Where images come from and how they are prepared: one dataclass of options a source, `--data.…`. Loads no torch.

A new source is a dataclass like these, with its `Source`, and a line of the registry.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from longvision.data.augment import Augment, DenseAugment, DetectionAugment
from longvision.data.config_base import ClassificationConfig, DataConfig, DetectionConfig, HoldOutConfig
from longvision.data.io.images import Channels
from longvision.data.sources.base import Source, Trained
from longvision.data.sources.coco import CocoSource
from longvision.data.sources.coco_layout import LabelsAndImages
from longvision.data.sources.digits import DigitsSource
from longvision.data.sources.folder import FolderSource
from longvision.data.sources.mask_folder import MaskFolderSource
from longvision.data.sources.mixed_digits import MixedDigitsSource
from longvision.data.sources.scattered_sets import (
    ScatteredDetection,
    ScatteredMode,
    ScatteredSegmentation,
    ScatteredSource,
)
from longvision.data.sources.shards import ShardSource
from longvision.data.sources.voc import VocSource
from longvision.data.transforms.input_spec import Resize

DenseResize = Literal["none", "short", "fit"]
DENSE_AUGMENT = DenseAugment()
# An upright digit has a top, a left and a right: it may lean, move and grow a little, never be mirrored.
DIGITS_AUGMENT = Augment(crop_scale=None, flip=0.0, rotate=10.0, shift=0.1, zoom=0.1)
MODE_AUGMENT = Augment(crop_scale=None, flip=0.0)  # a crop could change which digit is the most frequent
SCATTERED_SEGMENTATION_AUGMENT = DenseAugment(scale=(0.75, 1.5), flip=0.0, most=1.0)  # mostly background
SCATTERED_DETECTION_AUGMENT = DetectionAugment(scale=(0.5, 1.5), flip=0.0)  # a canvas is of the input's own size


@dataclass(frozen=True, kw_only=True)
class DigitsData(ClassificationConfig):
    """The 1,797 handwritten digits inside scikit-learn, scans of 8x8: 1,293 train, 144 validate, 360 by other writers
    test. Scans this small load fastest in the main process."""

    size: int | tuple[int, int] = 32
    channels: Channels = 1
    workers: int | None = 0
    augment: Augment = DIGITS_AUGMENT
    crop: float = 1.0  # type: ignore[misc]

    def source(self) -> Source[int]:
        return DigitsSource(self.channels)


@dataclass(frozen=True, kw_only=True)
class MixedDigitsData(DigitsData):
    """The same digits in images of every shape, of 12x12 to 36x90 pixels."""

    size: int | tuple[int, int] = 24

    def source(self) -> Source[int]:
        return MixedDigitsSource(self.channels)


@dataclass(frozen=True, kw_only=True)
class FolderData(ClassificationConfig, HoldOutConfig):
    """Images in one folder per class.

    Args:
        path: a folder with train/<class>/ and, where they exist, val/<class>/ and test/<class>/; or with
            <class>/ alone, of which a tenth validates.
    """

    path: str = field(kw_only=False)

    def source(self, trained: Trained | None = None) -> Source[int]:
        return self.tolerant(FolderSource(self.path, self.channels, self.seed, trained))


@dataclass(frozen=True, kw_only=True)
class ParquetData(ClassificationConfig, HoldOutConfig):
    """A Hugging Face image set in local Parquet files; a large one is copied, once, into the cache folder.

    Args:
        path: a folder with train*.parquet and, where they exist, val*.parquet and test*.parquet, or with
            data/ that holds them; without validation files, a tenth of the training images validates.
        image_column: the column of encoded images.
        label_column: the column of class numbers or class names.
    """

    path: str = field(kw_only=False)
    image_column: str = "image"
    label_column: str = "label"

    def source(self, trained: Trained | None = None) -> Source[int]:
        from longvision.data.sources.parquet import ParquetSource

        return self.tolerant(
            ParquetSource(self.path, self.channels, self.seed, self.image_column, self.label_column, trained)
        )


@dataclass(frozen=True, kw_only=True)
class ShardsData(ClassificationConfig, HoldOutConfig):
    """Tar files in WebDataset's layout: an image, and a .cls or .json with its class, a sample.

    Args:
        path: a folder with train*.tar and, where they exist, val*.tar and test*.tar, or with folders of these names;
            without validation files, a tenth of the training images validates.
        classes_file: names of the classes in the order of their numbers, a line each. When left out, classes are called
            by their numbers, unless labels are names.
        label_key: what a .json file calls the class, where there is no .cls file.
    """

    path: str = field(kw_only=False)
    classes_file: str | None = None
    label_key: str = "label"

    def source(self, trained: Trained | None = None) -> Source[int]:
        return self.tolerant(
            ShardSource(self.path, self.channels, self.seed, self.classes_file, self.label_key, trained)
        )


@dataclass(frozen=True, kw_only=True)
class MaskFolderData(DataConfig, HoldOutConfig):
    """Images with masks in folders, as ADE20K, CamVid and CHASEDB1 have them, or a set of your own.

    Args:
        path: a folder with images/train and masks/train (or annotations/train), train/images and train/masks, or train
            and trainannot, the same for val and, where it exists, test; with images and masks alone, of which a tenth
            validates; or with CHASEDB1's files, of which 18 train, 2 validate and the usual 8 test.
        classes_file: names of the classes, with their colours or values in masks: a JSON, YAML, CSV or text file of
            yours or of an annotation program, or ade20k, camvid or chasedb1, which come with the package. Colours go
            before values. When left out, the classes are numbered.
        reduce_zero_label: value 0 of a mask does not count, value k is class k - 1, as in ADE20K.
        ignore: the value of a mask's pixels that do not count, beside 255.
        resize: of an image in evaluation: none as it was taken, short its shorter side to that of size, fit as large
            as fits into size.
    """

    path: str = field(kw_only=False)
    classes_file: str | None = None
    reduce_zero_label: bool = False
    ignore: int | None = None
    size: int | tuple[int, int] = 512
    batch_size: int = 8
    resize: DenseResize = "none"  # type: ignore[misc]
    augment: DenseAugment = DENSE_AUGMENT

    def source(self, trained: Trained | None = None) -> Source[Any]:
        return self.tolerant(
            MaskFolderSource(
                self.path, self.channels, self.classes_file, self.reduce_zero_label, self.ignore, self.seed, trained
            )
        )


@dataclass(frozen=True, kw_only=True)
class CocoData(DetectionConfig):
    """Images labelled as COCO's, with masks where every training annotation has a segmentation.

    Args:
        path: a folder with annotations/instances_train*.json and instances_val*.json, instances_test*.json where it
            has labels, and the images in folders named as the files: train2017/, or images/train2017/.
        train: another JSON file and the folder of its images, both relative to `path`.
        val: the same for the images that validate.
        test: the same for the images that test.
    """

    path: str = field(kw_only=False)
    train: LabelsAndImages | None = None
    val: LabelsAndImages | None = None
    test: LabelsAndImages | None = None

    def source(self, trained: Trained | None = None) -> Source[Any]:
        return self.augment.checked(
            self.tolerant(CocoSource(self.path, self.train, self.val, self.test, trained, self.channels))
        )


@dataclass(frozen=True, kw_only=True)
class VocData(DetectionConfig):
    """Images labelled as Pascal VOC's: boxes without masks. Objects marked difficult are treated as crowds.

    Args:
        path: a folder, or one with a single such folder in it, that has Annotations/*.xml, JPEGImages/ and
            ImageSets/Main/train.txt and val.txt, and test.txt where there are labels for it.
    """

    path: str = field(kw_only=False)

    def source(self, trained: Trained | None = None) -> Source[Any]:
        return self.augment.checked(self.tolerant(VocSource(self.path, trained, self.channels)))


@dataclass(frozen=True, kw_only=True)
class ScatteredConfig(DataConfig):
    """scikit-learn's handwritten digits scattered over textured images: 200 validate, 400 of other writers test.

    Args:
        pictures: how many images train.
        seed: another one is another set.
    """

    size: int | tuple[int, int] = 128
    channels: Channels = 1
    batch_size: int = 16
    pictures: int = 2000
    seed: int = 0
    kind: ClassVar[type[ScatteredSource[Any]]]

    def source(self) -> Source[Any]:
        return self.kind(self.input().size, self.channels, self.pictures, self.seed)


@dataclass(frozen=True, kw_only=True)
class MostDigitsData(ScatteredConfig):
    """Scattered digits with the mode as the class: the digit that occurs most often."""

    size: int | tuple[int, int] = 256
    augment: ClassVar[Augment] = MODE_AUGMENT  # type: ignore[misc]
    resize: ClassVar[Resize] = "crop"
    kind = ScatteredMode


@dataclass(frozen=True, kw_only=True)
class ScatteredSegmentationData(ScatteredConfig):
    """Scattered digits with a class for each pixel: background, or the digit that it belongs to."""

    augment: DenseAugment = SCATTERED_SEGMENTATION_AUGMENT
    resize: ClassVar[Resize] = "none"
    kind = ScatteredSegmentation


@dataclass(frozen=True, kw_only=True)
class ScatteredDetectionData(ScatteredConfig):
    """Scattered digits with boxes and masks."""

    augment: DetectionAugment = SCATTERED_DETECTION_AUGMENT
    kind = ScatteredDetection
