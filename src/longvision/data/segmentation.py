"""Pictures with a class for each pixel: folders of images and masks, the embedded digits, and their training crops."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from longvision.data.dense import (
    IGNORE,
    Colour,
    DenseData,
    DensePreprocess,
    DenseSource,
    Resize,
    spread_colours,
)
from longvision.data.digits import CLASSES
from longvision.data.faults import NAMED
from longvision.data.folder import READERS
from longvision.data.images import Channels, as_channels, files_below, read_image
from longvision.data.masks import BadMask, MaskReader, read_values
from longvision.data.module import both_sides
from longvision.data.objects import upright_size
from longvision.data.palette import ClassFile, read_classes
from longvision.data.scattered import COUNTS, ScatteredDigits
from longvision.data.sets import Split, hold_out

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MASKS = ("masks", "annotations", "labels")
LAYOUTS = (
    "images/train with masks/train (or annotations/train), train/images with train/masks, train with trainannot, "
    "images with masks, or CHASEDB1's Image_01L.jpg with Image_01L_1stHO.png"
)
CHASE = re.compile(r"Image_(\d\d)[LR]\.jpg")  # the number is the patient's
CHASE_TRAIN = 9  # patients, of 14; the tenth validates. Publications train on ten: the first 20 of 28 pictures
JOINTS = "_-. "  # a mask's name is its image's, or goes on after it with one of these
TRIES = 10  # crops drawn before one that shows almost a single class is taken
NIGHT = (40, 40, 40)  # the colour of the background

Pair = tuple[str, str | None]  # an image file and its mask's, text as a million of them lie in every worker's memory
Places = dict[Split, tuple[Path, Path]]  # folders of images and of masks


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
        root: see LAYOUTS.
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
            named.binary or (classes_file is None and _is_chase(self.root)),
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


class ScatteredPictures(Dataset[tuple[Image.Image, np.ndarray]]):
    """Scenes of scattered digits with their class maps."""

    def __init__(self, scenes: ScatteredDigits, channels: Channels) -> None:
        self.scenes, self.channels = scenes, channels

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        scene = self.scenes.scene(index)
        return as_channels(scene.image, self.channels), scene.class_map_HW

    def name(self, index: int) -> str:
        return f"{self.scenes.split} picture {index}"


class ScatteredSegmentation(DenseSource[np.ndarray]):
    """Which digit does each pixel show, if any? See `ScatteredDigits`; `counts` are the pictures of each split."""

    has_test = True

    def __init__(
        self,
        size: tuple[int, int] = (256, 256),
        channels: Channels = 1,
        counts: dict[Split, int] | None = None,
        seed: int = 0,
    ) -> None:
        self.classes = ["background", *CLASSES]
        self.palette: list[Colour] = [NIGHT, *spread_colours(len(CLASSES))]
        self.size, self.channels, self.seed = size, channels, seed
        self.counts = COUNTS | (counts or {})

    def split(self, split: Split) -> ScatteredPictures:
        return ScatteredPictures(ScatteredDigits(split, self.counts[split], self.size, seed=self.seed), self.channels)

    def check(self, split: Split) -> None:
        """There is nothing to go wrong."""


@dataclass(frozen=True)
class DenseAugment:
    """How training pictures and their masks are varied.

    Args:
        scale: smallest and largest size, as a share of the size that evaluation sees.
        flip: probability of mirroring left and right.
        photometric: how far colours vary; 1 is 12.5 % in brightness, 50 % in contrast and saturation and 5 % of a
            turn in hue (grey images: brightness and contrast), 0 switches it off.
        most: a crop of which one class covers a larger share is drawn again, up to ten times; 1 switches it off.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    photometric: float = 1.0
    most: float = 0.75

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale}: expected two factors, 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip {self.flip}: expected a probability from 0 to 1")
        if not 0 <= self.photometric <= 2:
            raise ValueError(f"photometric {self.photometric}: expected a strength from 0 (off) to 2")
        if not 0 < self.most <= 1:
            raise ValueError(f"most {self.most}: expected a share above 0, up to 1 (off)")


DEFAULT_AUGMENT = DenseAugment()
# A digit must not be mirrored, and most of every picture is background.
SCATTERED_AUGMENT = DenseAugment(scale=(0.75, 1.5), flip=0.0, most=1.0)


class TrainCrop:
    """A picture and its mask -> a crop of both at the training size, varied alike.

    Returns (C, h, w) float32, normalised, and (h, w) int64. What lies beyond a picture smaller than the crop, below and
    right, is the mean in the image and ignored in the mask.
    """

    def __init__(self, augment: DenseAugment, preprocess: DensePreprocess) -> None:
        self.augment, self.preprocess = augment, preprocess
        steps: list[Any] = [v2.ToImage(), v2.RandomHorizontalFlip(augment.flip)]
        if augment.photometric:
            steps.append(_jitter(augment.photometric, preprocess.channels))
        self.vary = v2.Compose(steps)
        self.normalise = preprocess.normalise()

    def __call__(self, image: Image.Image, mask_HW: np.ndarray) -> tuple[Tensor, Tensor]:
        image, mask = as_channels(image, self.preprocess.channels), Image.fromarray(mask_HW)
        for _ in range(TRIES):
            window = self._draw(image.height, image.width)
            crop_hw = np.array(window.cut(mask, Image.Resampling.NEAREST))
            if self.augment.most == 1 or _largest_share(crop_hw) <= self.augment.most:
                break
        cut = window.cut(image, Image.Resampling.BILINEAR)
        varied, truth = self.vary(cut, tv_tensors.Mask(torch.from_numpy(crop_hw)))
        height, width = self.preprocess.size
        beyond = (0, width - cut.width, 0, height - cut.height)
        seen = self.normalise(varied).as_subclass(Tensor)
        return pad(seen, beyond), pad(truth.as_subclass(Tensor).long(), beyond, value=IGNORE)

    def _draw(self, height: int, width: int) -> "Window":
        """A window of a picture of that size, resized at random."""
        smallest, largest = self.augment.scale
        factor = smallest + (largest - smallest) * float(torch.rand(()))
        seen = self.preprocess.evaluated_size(height, width)
        scaled = max(1, round(seen[0] * factor)), max(1, round(seen[1] * factor))
        size = min(self.preprocess.size[0], scaled[0]), min(self.preprocess.size[1], scaled[1])
        top, left = (int(torch.randint(scaled[i] - size[i] + 1, ())) for i in (0, 1))
        down, across = height / scaled[0], width / scaled[1]
        right, bottom = min(width, (left + size[1]) * across), min(height, (top + size[0]) * down)
        return Window((left * across, top * down, right, bottom), size)


@dataclass(frozen=True)
class Window:
    """A part of a picture, and the size it is resized to: only the pixels that are kept are computed.

    Args:
        box: left, top, right and bottom in the picture's pixels, fractions included.
        size: height and width of the result.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]

    def cut(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        return image.resize(self.size[::-1], resampling, self.box)


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
        source = ScatteredSegmentation(preprocess.size, channels, {"train": pictures}, seed)
        super().__init__(source, preprocess, augment, batch_size, workers, "scattered-digits")


def find_pairs(root: Path, seed: int) -> dict[Split, list[Pair]]:
    """The images of each split, each with its mask, in the order of their names."""
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: give a folder of images and masks ({LAYOUTS})")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give a folder of images and masks ({LAYOUTS})")
    if _is_chase(root):
        return _chase_pairs(root)
    pairs = {split: match(*folders) for split, folders in _places(root).items()}
    if "val" not in pairs:
        if len(pairs["train"]) < 2:
            raise ValueError(f"{root} has a single image: add images, or some that validate")
        train, val = hold_out(np.zeros(len(pairs["train"]), np.int64), seed)
        pairs["train"], pairs["val"] = ([pairs["train"][row] for row in rows] for rows in (train, val))
    return pairs


def match(images: Path, masks: Path) -> list[Pair]:
    """Every file below `images` with the one below `masks` whose name is, or begins with, its own."""
    keys = {path: _key(path, images) for path in files_below(images)}
    if not keys:
        raise ValueError(f"{images} has no images: add some, or remove it")
    named = set(keys.values())
    same, longer = defaultdict(list), defaultdict(list)
    for mask in files_below(masks):
        key = _key(mask, masks)
        if key in named:
            same[key].append(mask)
        else:
            longer[_owner(key, named)].append(mask)
    found = {key: same.get(key) or longer.get(key) or [] for key in named}
    if not any(found.values()):
        raise ValueError(f"none of the {len(keys)} images in {images} has a mask in {masks}: expected equal names")
    for key, several in found.items():
        if len(several) > 1:
            raise ValueError(f"{images / key} has the masks {', '.join(several[:NAMED])}: keep one")
    return [(path, found[key][0] if found[key] else None) for path, key in keys.items()]


def _key(path: str, folder: Path) -> str:
    return os.path.splitext(os.path.relpath(path, folder))[0]


def _owner(key: str, named: set[str]) -> str | None:
    """The longest name that the mask's begins with."""
    cuts = [place for place, letter in enumerate(key) if letter in JOINTS]
    return next((key[:cut] for cut in reversed(cuts) if key[:cut] in named), None)


def _places(root: Path) -> Places:
    places = {split: place for split, words in SPLITS.items() if (place := _place(root, words))}
    if "train" in places:
        unmasked = [root / word for word in SPLITS["val"] if (root / word).is_dir()]
        unmasked += [root / "images" / word for word in SPLITS["val"] if (root / "images" / word).is_dir()]
        if "val" not in places and unmasked:
            raise ValueError(f"{unmasked[0]} has no folder of masks beside it: expected {LAYOUTS}")
        return places
    alone = [(root / "images", root / masks) for masks in MASKS]
    if place := next(filter(_both_exist, alone), None):
        return {"train": place}
    raise ValueError(f"{root} has no images with masks: expected {LAYOUTS}")


def _place(root: Path, words: Iterable[str]) -> tuple[Path, Path] | None:
    """Where the split that may be called by any of `words` lies."""
    for word in words:
        candidates = [(root / word, root / f"{word}annot")]
        for masks in MASKS:
            candidates += [
                (root / "images" / word, root / masks / word),
                (root / word / "images", root / word / masks),
            ]
        if place := next(filter(_both_exist, candidates), None):
            return place
    return None


def _both_exist(folders: tuple[Path, Path]) -> bool:
    return all(folder.is_dir() for folder in folders)


def _is_chase(root: Path) -> bool:
    return any(CHASE.fullmatch(entry.name) for entry in root.iterdir())


def _chase_pairs(root: Path) -> dict[Split, list[Pair]]:
    """The usual 8 test pictures, and both eyes of the last training patient to validate.

    The first observer's masks are the truth, as is usual.
    """
    pairs: dict[Split, list[Pair]] = {"train": [], "val": [], "test": []}
    for image in sorted(root.iterdir()):
        if found := CHASE.fullmatch(image.name):
            mask = image.with_name(f"{image.stem}_1stHO.png")
            pairs[_chase_split(int(found[1]))].append((str(image), str(mask) if mask.exists() else None))
    if not all(pairs.values()):
        count = sum(map(len, pairs.values()))
        raise ValueError(
            f"{root} has {count} of CHASEDB1's 28 pictures: expected patients 1 to {CHASE_TRAIN} to train, "
            f"{CHASE_TRAIN + 1} to validate and {CHASE_TRAIN + 2} to 14 to test"
        )
    return pairs


def _chase_split(patient: int) -> Split:
    if patient <= CHASE_TRAIN:
        return "train"
    return "val" if patient == CHASE_TRAIN + 1 else "test"


def _unnamed(masks: list[str], ignored: tuple[int, ...], reduce_zero_label: bool, root: Path) -> ClassFile:
    """Numbered classes, as many as the values of the masks ask for."""
    with ThreadPoolExecutor(READERS) as readers:
        values = set().union(*readers.map(_grey_values, masks)) - set(ignored)
    binary = _is_chase(root) or values == {0, 255}
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
    return f"{file} is {image[0]}x{image[1]}, its mask {mask[0]}x{mask[1]}"


def _largest_share(mask_hw: np.ndarray) -> float:
    """Of the pixels that count, those of the class with the most; 1 where none counts."""
    counts = np.bincount(mask_hw.ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / counts.sum()) if counts.any() else 1.0


def _jitter(strength: float, channels: Channels) -> v2.ColorJitter:
    if channels == 1:
        return v2.ColorJitter(brightness=0.125 * strength, contrast=0.5 * strength)
    return v2.ColorJitter(0.125 * strength, 0.5 * strength, 0.5 * strength, 0.05 * strength)
