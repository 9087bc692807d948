"""Images with a class for each pixel, in files: which they are, and whether the masks fit them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from longvision.data.io.class_files import ClassFile, read_classes
from longvision.data.io.colours import spread_colours
from longvision.data.io.deep import AnyImage
from longvision.data.io.headers import Header, read_header, turned_unseen_note, unturned_hint
from longvision.data.io.images import Channels, read_image, why_unreadable
from longvision.data.io.marks import size_of
from longvision.data.io.mask_reader import MaskReader, Reading, Way
from longvision.data.io.masks import is_in_colour
from longvision.data.io.threads import each_in_threads, in_threads
from longvision.data.problems import counted, is_too_many, listing, once_each, skipped_note, too_many_unreadable
from longvision.data.sources.base import ImageSet, Listed, Source, Trained, relative
from longvision.data.sources.mask_values import mixed_meanings, refuse_white_alone, unnamed_classes
from longvision.data.sources.pairs import ImageAndMask, find_pairs
from longvision.errors import UnreadableImage, UserError
from longvision.types import IGNORE, Size, Split


class MaskFolderSource(Source[np.ndarray]):
    """The images and masks below `root`, matched by name; no image is opened before a split is asked for.

    A mask is called as its image, or goes on after its name (street.jpg, street_mask.png). Where nothing validates, a
    tenth of the training images, drawn with `seed`, does. A test folder without masks is not used.

    Without `classes_file`, all masks are read once and the classes are called class 0, class 1, … up to the highest
    value found; masks of 0 and 255 alone show class 0 and class 1. Values that cannot all be classes are refused.
    Arguments as of `MaskFolderData`; where `ignore` is left out, the class file says it.
    """

    def __init__(
        self,
        root: str | Path,
        channels: Channels = 3,
        classes_file: str | None = None,
        reduce_zero_label: bool = False,
        ignore: int | None = None,
        seed: int = 0,
        trained: Trained | None = None,
    ) -> None:
        self.root, self.name, self.channels = Path(root), str(root), channels
        self.pairs, self.draws_validation = find_pairs(self.root, None if trained else seed, self.notes, classes_file)
        self.has_test = "test" in self.pairs
        self.splits, self.trained = list(self.pairs), trained
        ignored = () if ignore is None else (_grey_value(ignore),)
        masks = [mask for pairs in self.pairs.values() for _, mask in pairs if mask]
        if trained and classes_file is None:
            named = ClassFile(trained.classes, spread_colours(len(trained.classes)), binary=trained.binary)
        elif classes_file is None:
            named = unnamed_classes(masks, ignored, reduce_zero_label, self.root)
        else:
            named = read_classes(classes_file)
        self.notes += named.notes
        self.classes, self.palette, self.binary = named.classes, named.palette, named.binary
        self.reader = MaskReader(
            len(named.classes),
            tuple(named.palette) if named.coloured else (),
            ignored or named.ignore,
            reduce_zero_label,
            named.binary,
            named.values,
            named.numbered,
            named.coloured and any(each_in_threads(is_in_colour, masks)),
        )
        self._ways: dict[Way, str] = {}  # by which masks were read -> one of them
        self._values: dict[str, frozenset[int]] = {}  # of the masks that were read

    def split(self, split: Split) -> ImageSet[np.ndarray]:
        return ImageSet(self.pairs[split], partial(_read, reader=self.reader, channels=self.channels), itemgetter(0))

    def identified(self, split: Split, row: int, item: ImageAndMask) -> Listed:
        """The label is the mask's file with its size."""
        file, mask = item
        label = f"{relative(mask, self.name)}, {size_of(mask) or 0} bytes" if mask else ""
        return Listed(relative(file, self.name), label, file)

    def check(self, split: Split) -> None:
        """Read every mask and the size of every image. A few that cannot be read are told, and skipped later."""
        pairs = self.pairs[split]
        turned: list[str] = []
        found = in_threads(partial(self._problem_or_reading, turned=turned), pairs)
        unreadable = [str(one) for one in found if isinstance(one, UnreadableImage)]
        problems = [str(one) for one in found if not isinstance(one, Checked)]
        if len(problems) == len(unreadable) and is_too_many(len(unreadable), len(pairs), self.tolerated):
            raise too_many_unreadable(unreadable, len(unreadable), len(pairs), f"{self.root} ({split})", self.tolerated)
        if len(problems) > len(unreadable):
            raise UserError(
                f"{len(problems)} of {len(pairs)} images of {self.root} ({split}) cannot be used: "
                f"{listing(once_each(problems), '; ')}"
            )
        if unreadable:
            self.notes.append(skipped_note(unreadable, len(pairs), f"{self.root} ({split})"))
        if turned:
            self.notes.append(turned_unseen_note(f"{self.root} ({split})", turned))
        read = {str(pair[1]): one for pair, one in zip(pairs, found, strict=True) if isinstance(one, Checked)}
        self._check_meaning(read)
        self._tell_what_does_not_count(split, list(read.values()))
        shown: set[int] = set().union(*(one.classes for one in read.values()))
        if split == "train" and len(shown) < 2 and not self.trained:
            only = ", ".join(self.classes[number] for number in shown) or "pixels to ignore"
            raise UserError(
                f"the training masks of {self.root} show only {only}: expected two classes or more; where 255 is a "
                'class and not ignored, give a classes_file with "binary": true'
            )

    def _check_meaning(self, read: "dict[str, Checked]") -> None:
        """All masks are to be read the same way, those of other splits too."""
        self._values |= {mask: one.values for mask, one in read.items()}
        for mask, one in read.items():
            if one.way:
                self._ways.setdefault(one.way, mask)
        if len(self._ways) > 1:
            raise UserError(
                f"{self._ways['colours']} shows the classes by their colours, {self._ways['numbers']} by numbers: "
                "write all masks the same way, or give a classes_file without colours"
            )
        if not self._knows_255():
            mixed_meanings(self._values)
            if self.trained:
                refuse_white_alone(self._values, self.classes)
        if "numbers" in self._ways and self.reader.in_colour:
            note = f"{self.name}: the colours in the masks are not those of the classes_file, so their numbers count"
            self.notes += [note] * (note not in self.notes)

    def _knows_255(self) -> bool:
        """Whether somebody has said what it means."""
        return self.reader.binary or IGNORE in self.reader.ignore or IGNORE in self.reader.values

    def _tell_what_does_not_count(self, split: Split, read: Sequence["Checked"]) -> None:
        marked = sum(IGNORE in one.values for one in read)
        if not marked or self._knows_255():
            return
        share = sum(one.ignored for one in read) / sum(one.pixels for one in read)
        self.notes.append(
            f"{self.root} ({split}): {IGNORE} is in {marked} of {counted(len(read), 'mask')} and does not count, "
            f"{share:.1%} of the pixels; where it is a class, give a classes_file with its number"
        )

    def _problem_or_reading(self, pair: ImageAndMask, turned: list[str]) -> "str | UnreadableImage | Checked":
        """What is wrong with an image, or how its mask was read; `turned` gets an image of which only one is turned."""
        header = read_header(pair[0])
        if header is None:
            return why_unreadable(pair[0])
        try:
            found = _read_mask(pair, header.size, self.reader)
        except UnreadableImage as error:
            return error
        except UserError as error:
            return str(error)
        if header.turned_unseen and pair[1] and read_header(pair[1]) == Header(header.size):
            turned.append(os.path.basename(pair[0]))
        count = np.bincount(found.numbers_HW.ravel(), minlength=256)
        shown = np.flatnonzero(count[:IGNORE])
        return Checked(frozenset(shown.tolist()), found.way, found.values, int(count[IGNORE]), int(count.sum()))


@dataclass(frozen=True)
class Checked:
    """The classes in a mask; how it was read, and its values (`Reading`); how many pixels do not count, and all."""

    classes: frozenset[int]
    way: Way
    values: frozenset[int]
    ignored: int
    pixels: int


def _read(pair: ImageAndMask, reader: MaskReader, channels: Channels) -> tuple[AnyImage, np.ndarray]:
    image = read_image(pair[0], channels)
    return image, _read_mask(pair, (image.height, image.width), reader).numbers_HW


def _read_mask(pair: ImageAndMask, size: Size, reader: MaskReader) -> Reading:
    """Raises UserError where there is none of the image's size."""
    file, mask = pair
    if mask is None:
        raise UserError(f"{file} has no mask: add one, or remove the image")
    found = reader.reading(mask)
    if found.numbers_HW.shape != size:
        height, width = found.numbers_HW.shape
        hint = unturned_hint(file, found.numbers_HW.shape) or unturned_hint(mask, size)
        raise UserError(f"{file} is {size[1]} wide and {size[0]} high, its mask {width} wide and {height} high{hint}")
    return found


def _grey_value(ignore: int) -> int:
    if not 0 <= ignore <= 65535:
        raise UserError(f"ignore {ignore}: expected a value of masks, 0 to 65535")
    return ignore
