"""Pictures with a class for each pixel: which they are, how they are prepared, in what batches."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from longvision.data.dense import DenseData, DensePreprocess, DenseSource, Resize
from longvision.data.faults import NAMED
from longvision.data.io.class_files import ClassFile, read_classes
from longvision.data.io.colours import spread_colours
from longvision.data.io.images import Channels, read_image
from longvision.data.io.masks import BadMask, MaskReader, read_values
from longvision.data.module import both_sides
from longvision.data.sources.folder import READERS
from longvision.data.sources.objects import upright_size
from longvision.data.sources.pairs import Pair, find_pairs, is_chase
from longvision.data.sources.scattered import COUNTS
from longvision.data.sources.scattered_sets import ScatteredSegmentation
from longvision.data.sources.sets import Split
from longvision.data.transforms.segmentation import DEFAULT_AUGMENT, DenseAugment, TrainCrop
from longvision.types import IGNORE

# A digit must not be mirrored, and most of every picture is background.
SCATTERED_AUGMENT = DenseAugment(scale=(0.75, 1.5), flip=0.0, most=1.0)


class MaskedPictures(Dataset[tuple[Image.Image, np.ndarray]]):
    """Image files with their masks (H, W) uint8; read when they are asked for."""

    def __init__(self, pairs: list[Pair], reader: MaskReader, channels: Channels) -> None:
        self.pairs, self.reader, self.channels = pairs, reader, channels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        file, mask = self.pairs[index]
        if mask is None:
            raise ValueError(f"{file} has no mask: add one, or remove the image")
        image, mask_HW = read_image(file, self.channels), self.reader.read(mask)
        if fault := _size_fault(file, (image.height, image.width), mask_HW.shape):
            raise ValueError(fault)
        return image, mask_HW

    def name(self, index: int) -> str:
        return os.path.basename(self.pairs[index][0])


class SegmentationFolder(DenseSource[np.ndarray]):
    """The images and masks below `root`, matched by name; no image is opened before a split is asked for.

    A mask is called as its image, or goes on after its name (street.jpg, street_mask.png). Where nothing validates, a
    tenth of the training images, drawn with `seed`, does. A test folder without masks is not used.

    Args:
        root: see `pairs.LAYOUTS`.
        channels: 1 for grey, 3 for colour.
        classes_file: see `palette.read_classes`. When left out, all masks are read once and the classes are called
            class 0, class 1, … up to the highest value found; masks of 0 and 255 alone show class 0 and class 1.
        reduce_zero_label: value 0 of a mask does not count, value k is class k - 1, as in ADE20K.
        ignore: the value of a mask's pixels that do not count, beside 255; as the class file says when left out.
        seed: draws the images that validate where no folder holds them.
    """

    def __init__(
        self,
        root: str | Path,
        channels: Channels = 3,
        classes_file: str | None = None,
        reduce_zero_label: bool = False,
        ignore: int | None = None,
        seed: int = 0,
    ) -> None:
        self.root, self.channels = Path(root), channels
        self.pairs = find_pairs(self.root, seed)
        self.has_test = "test" in self.pairs
        ignored = () if ignore is None else (_grey_value(ignore),)
        if classes_file is None:
            masks = [mask for pairs in self.pairs.values() for _, mask in pairs if mask]
            named = _unnamed(masks, ignored, reduce_zero_label, self.root)
        else:
            named = read_classes(classes_file)
        self.classes, self.palette = named.classes, named.palette
        self.reader = MaskReader(
            len(named.classes),
            tuple(named.palette) if named.coloured else (),
            ignored or named.ignore,
            reduce_zero_label,
            named.binary or (classes_file is None and is_chase(self.root)),
        )

    def split(self, split: Split) -> MaskedPictures:
        return MaskedPictures(self.pairs[split], self.reader, self.channels)

    def check(self, split: Split) -> None:
        """Read every mask and the size of every image."""
        pairs = self.pairs[split]
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(self._fault_or_classes, pairs))
        if faults := [fault for fault in found if isinstance(fault, str)]:
            first = "; ".join(faults[:NAMED]) + ("; …" if len(faults) > NAMED else "")
            raise ValueError(f"{len(faults)} of {len(pairs)} pictures of {self.root} ({split}) cannot be used: {first}")
        shown: set[int] = set().union(*(classes for classes in found if isinstance(classes, set)))
        if split == "train" and len(shown) < 2:
            only = ", ".join(self.classes[number] for number in shown) or "pixels to ignore"
            raise ValueError(
                f"the training masks of {self.root} show only {only}: expected two classes or more; where 255 is a "
                'class and not ignored, give a classes_file with "binary": true'
            )

    def _fault_or_classes(self, pair: Pair) -> str | set[int]:
        """What is wrong with a picture, or the classes in it."""
        file, mask = pair
        if mask is None:
            return f"{file} has no mask"
        size = upright_size(file)
        if size is None:
            return f"{file} is not an image"
        try:
            mask_HW = self.reader.read(mask)
        except BadMask as error:
            return str(error)
        fault = _size_fault(file, size, mask_HW.shape)
        return fault or set(np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=256)[:IGNORE]).tolist())


class SegmentationData(DenseData[Any]):
    """Pictures with masks. Training: (C, h, w) float32 with (h, w) int64; evaluation: the picture as `preprocess` fits
    it, with its mask (H, W) int64 as it was drawn."""

    def __init__(
        self,
        source: DenseSource[np.ndarray],
        preprocess: DensePreprocess,
        augment: DenseAugment,
        batch_size: int,
        workers: int | None,
        name: str,
    ) -> None:
        super().__init__(source, preprocess, batch_size, workers, name)
        self.augment = augment
        self._crop = TrainCrop(augment, preprocess)

    def train_transform(self, image: Image.Image, target: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._crop(image, target)

    def evaluate(self, image: Image.Image, target: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.preprocess.evaluated(image), torch.from_numpy(target).long()


class MaskFolderData(SegmentationData):
    """Images with masks in folders, as ADE20K, CamVid and CHASEDB1 have them, or a set of your own.

    Args:
        path: a folder with images/train and masks/train (or annotations/train), train/images and train/masks, or train
            and trainannot, the same for val and, where it exists, test; with images and masks alone, of which a tenth
            validates; or with CHASEDB1's files, of which 18 train, 2 validate and the usual 8 test.
        classes_file: names and colours of the classes: a JSON, YAML or text file, or ade20k, camvid or chasedb1, which
            come with the package. When left out, the classes are numbered.
        reduce_zero_label: value 0 of a mask does not count, value k is class k - 1, as in ADE20K.
        ignore: the value of a mask's pixels that do not count, beside 255.
        size: side of a square training crop, or its height and width.
        channels: 1 for grey, 3 for colour.
        batch_size: training crops a step.
        workers: processes that load images; at most 4, one a core, when left out.
        augment: how training images are varied.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
        resize: of a picture in evaluation: none as it was taken, short its shorter side to that of size, fit as large
            as fits into size.
        seed: draws the images that validate where no folder holds them.
    """

    def __init__(
        self,
        path: str,
        classes_file: str | None = None,
        reduce_zero_label: bool = False,
        ignore: int | None = None,
        size: int | tuple[int, int] = 512,
        channels: Channels = 3,
        batch_size: int = 8,
        workers: int | None = None,
        augment: DenseAugment = DEFAULT_AUGMENT,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        resize: Resize = "none",
        seed: int = 0,
    ) -> None:
        preprocess = DensePreprocess(both_sides(size), channels, mean or (), std or (), resize)
        source = SegmentationFolder(path, channels, classes_file, reduce_zero_label, ignore, seed)
        super().__init__(source, preprocess, augment, batch_size, workers, path)


class ScatteredSegmentationData(SegmentationData):
    """scikit-learn's handwritten digits scattered over textured pictures: 200 validate, 400 of other writers test.

    Args:
        size: side of the square pictures and training crops, or their height and width; 32 pixels or more.
        channels: 1 for grey, 3 for colour.
        pictures: how many train.
        batch_size: training crops a step.
        workers: processes that make pictures; at most 4, one a core, when left out.
        augment: how training pictures are varied.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
        seed: another one is another set.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 128,
        channels: Channels = 1,
        pictures: int = COUNTS["train"],
        batch_size: int = 16,
        workers: int | None = None,
        augment: DenseAugment = SCATTERED_AUGMENT,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
    ) -> None:
        preprocess = DensePreprocess(both_sides(size), channels, mean or (), std or ())
        source = ScatteredSegmentation(preprocess.size, channels, pictures, seed)
        super().__init__(source, preprocess, augment, batch_size, workers, "scattered-digits")


def _unnamed(masks: list[str], ignored: tuple[int, ...], reduce_zero_label: bool, root: Path) -> ClassFile:
    """Numbered classes, as many as the values of the masks ask for."""
    with ThreadPoolExecutor(READERS) as readers:
        values = set().union(*readers.map(_grey_values, masks)) - set(ignored)
    binary = is_chase(root) or values == {0, 255}
    highest = 1 if binary else max(values - {IGNORE}, default=0) - reduce_zero_label
    if not 1 <= highest < IGNORE:
        some = ", ".join(map(str, sorted(values)[:NAMED])) or "no value"
        raise ValueError(f"the masks of {root} hold {some}: give a classes_file that says what the values mean")
    count = highest + 1
    return ClassFile([f"class {number}" for number in range(count)], spread_colours(count), binary=binary)


def _grey_values(mask: str) -> set[int]:
    try:
        values = read_values(mask)
    except BadMask:  # `check` tells of it
        return set()
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise ValueError(f"{mask} is in colour: give a classes_file with the colour of each class")
        values = values[:, :, 0]
    return set(np.unique(values).tolist())


def _grey_value(ignore: int) -> int:
    if not 0 <= ignore <= 65535:
        raise ValueError(f"ignore {ignore}: expected a value of masks, 0 to 65535")
    return ignore


def _size_fault(file: str, image: tuple[int, ...], mask: tuple[int, ...]) -> str | None:
    if image == mask:
        return None
    return f"{file} is {image[1]} wide and {image[0]} high, its mask {mask[1]} wide and {mask[0]} high"
