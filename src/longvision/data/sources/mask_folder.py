"""Images with a class for each pixel, in files: which they are, and whether the masks fit them."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from longvision.data.io.class_files import ClassFile, read_classes
from longvision.data.io.colours import spread_colours
from longvision.data.io.headers import Header, read_header, turned_unseen_note, unturned_hint
from longvision.data.io.images import Channels, read_image
from longvision.data.io.masks import BadMask, MaskReader, as_grey, read_values
from longvision.data.io.threads import in_threads
from longvision.data.problems import NAMED, listing
from longvision.data.sources.base import ImageSet, Source
from longvision.data.sources.pairs import ImageAndMask, find_pairs, is_chase
from longvision.errors import UserError
from longvision.types import IGNORE, Size, Split


class MaskFolderSource(Source[np.ndarray]):
    """The images and masks below `root`, matched by name; no image is opened before a split is asked for.

    A mask is called as its image, or goes on after its name (street.jpg, street_mask.png). Where nothing validates, a
    tenth of the training images, drawn with `seed`, does. A test folder without masks is not used.

    Without `classes_file`, all masks are read once and the classes are called class 0, class 1, … up to the highest
    value found; masks of 0 and 255 alone show class 0 and class 1. Arguments as of `MaskFolderData`; where `ignore` is
    left out, the class file says it.
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
        self.root, self.name, self.channels = Path(root), str(root), channels
        self.pairs = find_pairs(self.root, seed, self.notes)
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
            named.binary,
        )

    def split(self, split: Split) -> ImageSet[np.ndarray]:
        return ImageSet(self.pairs[split], partial(_read, reader=self.reader, channels=self.channels))

    def check(self, split: Split) -> None:
        """Read every mask and the size of every image."""
        pairs = self.pairs[split]
        turned: list[str] = []
        found = in_threads(partial(self._problem_or_classes, turned=turned), pairs)
        if problems := [problem for problem in found if isinstance(problem, str)]:
            raise UserError(
                f"{len(problems)} of {len(pairs)} images of {self.root} ({split}) cannot be used: "
                f"{listing(problems, '; ')}"
            )
        if turned:
            self.notes.append(turned_unseen_note(f"{self.root} ({split})", turned))
        shown: set[int] = set().union(*(classes for classes in found if isinstance(classes, set)))
        if split == "train" and len(shown) < 2:
            only = ", ".join(self.classes[number] for number in shown) or "pixels to ignore"
            raise UserError(
                f"the training masks of {self.root} show only {only}: expected two classes or more; where 255 is a "
                'class and not ignored, give a classes_file with "binary": true'
            )

    def _problem_or_classes(self, pair: ImageAndMask, turned: list[str]) -> str | set[int]:
        """What is wrong with an image, or the classes in it; `turned` gets an image of which only one is turned."""
        header = read_header(pair[0])
        if header is None:
            return f"{pair[0]} is not an image"
        try:
            mask_HW = _read_mask(pair, header.size, self.reader)
        except UserError as error:
            return str(error)
        if header.turned_unseen and pair[1] and read_header(pair[1]) == Header(header.size):
            turned.append(os.path.basename(pair[0]))
        return set(np.flatnonzero(np.bincount(mask_HW.ravel(), minlength=256)[:IGNORE]).tolist())


def _read(pair: ImageAndMask, reader: MaskReader, channels: Channels) -> tuple[Image.Image, np.ndarray]:
    image = read_image(pair[0], channels)
    return image, _read_mask(pair, (image.height, image.width), reader)


def _read_mask(pair: ImageAndMask, size: Size, reader: MaskReader) -> np.ndarray:
    """(H, W) uint8. Raises UserError where there is none of the image's size."""
    file, mask = pair
    if mask is None:
        raise UserError(f"{file} has no mask: add one, or remove the image")
    mask_HW = reader.read(mask)
    if mask_HW.shape != size:
        height, width = mask_HW.shape
        hint = unturned_hint(file, mask_HW.shape) or unturned_hint(mask, size)
        raise UserError(f"{file} is {size[1]} wide and {size[0]} high, its mask {width} wide and {height} high{hint}")
    return mask_HW


def _unnamed(masks: list[str], ignored: tuple[int, ...], reduce_zero_label: bool, root: Path) -> ClassFile:
    """Numbered classes, as many as the values of the masks ask for."""
    values = set().union(*in_threads(_grey_values, masks)) - set(ignored)
    binary = is_chase(root) or values == {0, 255}
    highest = 1 if binary else max(values - {IGNORE}, default=0) - reduce_zero_label
    if not 1 <= highest < IGNORE:
        some = ", ".join(map(str, sorted(values)[:NAMED])) or "no value"
        raise UserError(f"the masks of {root} hold {some}: give a classes_file that says what the values mean")
    count = highest + 1
    return ClassFile([f"class {number}" for number in range(count)], spread_colours(count), binary=binary)


def _grey_values(mask: str) -> set[int]:
    try:
        values = read_values(mask)
    except BadMask:  # `check` tells of it
        return set()
    return set(np.unique(as_grey(values, mask)).tolist())


def _grey_value(ignore: int) -> int:
    if not 0 <= ignore <= 65535:
        raise UserError(f"ignore {ignore}: expected a value of masks, 0 to 65535")
    return ignore
