"""The Lightning side of detection and instance segmentation: which pictures, how they are prepared, in what batches."""

from dataclasses import replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from longvision.data.dense import DenseData, DensePreprocess, DenseSource
from longvision.data.io.images import Channels
from longvision.data.module import both_sides
from longvision.data.sources.coco import CocoSource, Pair
from longvision.data.sources.scattered import COUNTS
from longvision.data.sources.scattered_sets import ScatteredDetection
from longvision.data.sources.voc import VocSource
from longvision.data.transforms.detection import DetectionAugment, training_sample
from longvision.types import Target

DEFAULT_AUGMENT = DetectionAugment()
# An upright digit has a left and a right, and a canvas of the model's own size needs no tenfold change.
SCATTERED_AUGMENT = DetectionAugment(scale=(0.5, 1.5), flip=0.0)


class DetectionSource(DenseSource[Target], Protocol):
    has_masks: bool


class DetectionData(DenseData[Target]):
    """Batches of pictures and of their objects, from any source of them.

    A training picture fills the model's size; an evaluated one is as large as fits into it, and its objects stay in
    the pixels of the original, whose size is `target.size`. Both may have no objects.
    """

    source: DetectionSource

    def __init__(
        self,
        source: DetectionSource,
        preprocess: DensePreprocess,
        augment: DetectionAugment,
        batch_size: int,
        workers: int | None,
        name: str,
    ) -> None:
        super().__init__(source, preprocess, batch_size, workers, name)
        self.has_masks = source.has_masks
        self.augment = augment
        if augment.copy_paste and not self.has_masks:
            raise ValueError(f"copy_paste {augment.copy_paste}: {name} has no masks to cut objects out by, set it to 0")

    def train_transform(self, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
        return training_sample(image, target, self.preprocess, self.augment, self._another)

    def evaluate(self, image: Image.Image, target: Target) -> tuple[Tensor, Target]:
        """The image as a model sees it; the target in the picture's own pixels, with `size`, its height and width."""
        return self.preprocess.evaluated(image), replace(target, size=(image.height, image.width))

    def _another(self) -> tuple[Image.Image, Target]:
        pictures = self.images("train")
        return pictures[int(torch.randint(len(pictures), ()))]


class CocoData(DetectionData):
    """Pictures labelled as COCO's, with masks where every training annotation has a segmentation.

    Args:
        path: a folder with annotations/instances_train*.json and instances_val*.json, instances_test*.json where it
            has labels, and the images in folders named as the files: train2017/, or images/train2017/.
        train: another JSON file and the folder of its images, both relative to `path`.
        val: the same for the images that validate.
        test: the same for the images that test.
        size: side of the square that a training picture fills, or its height and width.
        channels: 1 for grey, 3 for colour.
        batch_size: pictures a step.
        workers: processes that load pictures; at most 4, one a core, when left out.
        augment: how training pictures are varied.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
    """

    def __init__(
        self,
        path: str,
        train: Pair | None = None,
        val: Pair | None = None,
        test: Pair | None = None,
        size: int | tuple[int, int] = 512,
        channels: Channels = 3,
        batch_size: int = 8,
        workers: int | None = None,
        augment: DetectionAugment = DEFAULT_AUGMENT,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        preprocess = DensePreprocess(both_sides(size), channels, mean or (), std or (), "fit")
        super().__init__(CocoSource(path, train, val, test), preprocess, augment, batch_size, workers, path)


class VocData(DetectionData):
    """Pictures labelled as Pascal VOC's: boxes without masks. Objects marked difficult are treated as crowds.

    Args:
        path: a folder, or one with a single such folder in it, that has Annotations/*.xml, JPEGImages/ and
            ImageSets/Main/train.txt and val.txt, and test.txt where there are labels for it.
        size: side of the square that a training picture fills, or its height and width.
        channels: 1 for grey, 3 for colour.
        batch_size: pictures a step.
        workers: processes that load pictures; at most 4, one a core, when left out.
        augment: how training pictures are varied.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
    """

    def __init__(
        self,
        path: str,
        size: int | tuple[int, int] = 512,
        channels: Channels = 3,
        batch_size: int = 8,
        workers: int | None = None,
        augment: DetectionAugment = DEFAULT_AUGMENT,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        preprocess = DensePreprocess(both_sides(size), channels, mean or (), std or (), "fit")
        super().__init__(VocSource(path), preprocess, augment, batch_size, workers, path)


class ScatteredDetectionData(DetectionData):
    """Scanned digits scattered over textured canvases, with boxes and masks: a detection problem without a download.

    Args:
        size: side of the square canvases, or their height and width.
        channels: 1 for grey, 3 for colour.
        pictures: how many train; 200 validate, 400 of other writers test.
        seed: another one is another set.
        batch_size: pictures a step.
        workers: processes that load pictures; at most 4, one a core, when left out.
        augment: how training pictures are varied.
        mean: mean of each channel on the scale 0..1; ImageNet's when left out.
        std: standard deviation of each channel; ImageNet's when left out.
    """

    def __init__(
        self,
        size: int | tuple[int, int] = 128,
        channels: Channels = 1,
        pictures: int = COUNTS["train"],
        seed: int = 0,
        batch_size: int = 16,
        workers: int | None = None,
        augment: DetectionAugment = SCATTERED_AUGMENT,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        preprocess = DensePreprocess(both_sides(size), channels, mean or (), std or (), "fit")
        source = ScatteredDetection(preprocess.size, channels, pictures, seed)
        super().__init__(source, preprocess, augment, batch_size, workers, "scattered-digits")
