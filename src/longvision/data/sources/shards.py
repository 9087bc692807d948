"""Tar files in WebDataset's layout: train-000000.tar, … in DIR or in DIR/train, one image and one label a sample.

Their headers are read once, which tells where each image is. So tar files are read as a folder is: in any order, the
very same one after an interruption, and shared by any number of processes without overlap.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from io import BufferedReader
from itertools import chain
from pathlib import Path

import numpy as np

from longvision.data.io.class_files import read_classes
from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, read_image
from longvision.data.io.windows import Window
from longvision.data.problems import counted, listing, refuse
from longvision.data.serialized import SerializedList
from longvision.data.sources.base import ImageSet, Listed, Source, Trained, hold_out, look_alike, without_images
from longvision.data.sources.shard_layout import find_files
from longvision.data.sources.tar_samples import Sample, read_samples
from longvision.errors import UnreadableImage, UserError
from longvision.types import Split

Item = tuple[int, int, int, int, str, str]  # which of the split's files, offset and size in it, class number, key, mark


class ShardSource(Source[int]):
    """The tar files below `root`; construction reads their headers and labels, and checks them.

    Labels are numbers from 0 or names. Classes are those of `classes_file`, else the sorted names, or "0" to the
    highest number. Without validation files, a tenth of each class, drawn with `seed`, validates.
    """

    def __init__(
        self,
        root: str | Path,
        channels: Channels = 3,
        seed: int = 0,
        classes_file: str | None = None,
        label_key: str = "label",
        trained: Trained | None = None,
    ) -> None:
        self.name, self.channels, self.seed = str(root), channels, seed
        self.files = find_files(Path(root), self.notes, trained is not None, ".tar", classes_file)
        samples = {split: read_samples(files, label_key, self.notes) for split, files in self.files.items()}
        self.has_test, self.splits = "test" in self.files, list(self.files)
        self.draws_validation = trained is None and "val" not in self.files
        named = self._named(classes_file)
        if named != (trained and trained.classes):  # a model's were certain when it was trained
            numbers = {one.label for file in chain(*samples.values()) for one in file if isinstance(one.label, int)}
            _refuse_two_meanings(numbers, named, f"{self.name} and {classes_file}")
        if trained is None:
            self.classes = named or _classes([one for found in samples["train"] for one in found], self.name)
            self.notes += look_alike(self.classes, self.name)
        else:
            self.classes = trained.classes
        self.items = {split: SerializedList(self._items(split, found, named)) for split, found in samples.items()}
        if trained is None:
            self.notes += without_images(self.classes, (item[3] for item in self.items["train"]))

    def split(self, split: Split) -> ImageSet[int]:
        held_out = self.draws_validation and split != "test"
        source: Split = "train" if held_out else split
        items: Sequence[Item] = self.items[source]
        if held_out:
            train, val = hold_out(np.array([item[3] for item in items]), self.seed)
            items = [items[row] for row in (train if split == "train" else val)]
        files = self.files[source]
        read = partial(_read, files=files, channels=self.channels)
        return ImageSet(items, read, partial(_content, files), partial(_window, files))

    def listed_images(self, split: Split) -> list[Listed]:
        """By file and key; what they are is told by a mark of their bytes."""
        items = self.split(split).items
        files = self.files["train" if self.draws_validation and split != "test" else split]
        names = [file.relative_to(self.name).as_posix() for file in files]
        return [Listed(f"{names[place]}/{key}", self.classes[label], None, mark)
                for place, _, _, label, key, mark in items]  # fmt: skip

    def _named(self, classes_file: str | None) -> list[str]:
        if classes_file is None:
            return []
        found = read_classes(classes_file)
        self.notes += found.notes
        return found.classes

    def _items(self, split: Split, samples: list[list[Sample]], named: list[str]) -> list[Item]:
        """Raises UserError for labels that are none of the classes, and for samples that two files hold."""
        files, items = self.files[split], []
        numbers = {name: number for number, name in enumerate(self.classes)}
        wrong: list[str] = []
        for place, found in enumerate(samples):
            for one in found:
                label = one.label
                if isinstance(label, int) and 0 <= label < len(named):  # a number of the class file
                    label = named[label]
                number = label if isinstance(label, int) else numbers.get(label, -1)
                if not 0 <= number < len(self.classes):
                    wrong.append(f"{files[place].name}/{one.key}: {label}")
                items.append((place, one.image.offset, one.image.size, number, one.key, one.mark))
        if wrong:
            raise _outside(self.name, wrong, self.classes)
        if not items:
            raise UserError(f"{files[0].parent} has no samples in {listing([file.name for file in files])}")
        refuse(_twice(items, files), f"{self.name} has samples that two of its tar files hold", "keep one of them")
        return items


def _outside(where: str, wrong: list[str], classes: list[str]) -> UserError:
    return UserError(
        f"{where} has {counted(len(wrong), 'label')} outside the {len(classes)} classes {listing(classes)} "
        f"({listing(wrong)}): correct or drop these samples, or give data.classes_file"
    )


def _refuse_two_meanings(numbers: set[int], named: Sequence[str], where: str) -> None:
    """Labels that may be places in a class file, or names in it that are numbers. One that is not both tells which."""
    called = {name: place for place, name in enumerate(named)}
    if all(str(number) in called for number in numbers):
        for number in sorted(numbers):
            if called[str(number)] != number:
                raise UserError(
                    f"{where}: the label {number} may mean number {number} of the classes, counted from 0, or the one "
                    f"called {number}: give classes names that are no numbers, or list them in their numbers' order"
                )


def _classes(samples: Sequence[Sample], where: str) -> list[str]:
    """Raises UserError for labels that make no classes."""
    names = {one.label for one in samples if isinstance(one.label, str)}
    numbers = [one.label for one in samples if isinstance(one.label, int)]
    if names and numbers:
        raise UserError(f"{where} has class names and class numbers for labels: write all the same way")
    if numbers and max(numbers) >= len(numbers):
        raise UserError(
            f"{where} has the label {max(numbers)} in {len(numbers)} samples: expected class numbers from 0"
        )
    classes = sorted(names) or [str(number) for number in range(max(numbers, default=-1) + 1)]
    if len(classes) < 2:
        raise UserError(f"{where} has {counted(len(classes), 'class')}: two are needed at least")
    return classes


def _twice(items: Sequence[Item], files: Sequence[Path]) -> list[str]:
    """Samples of one key and the same bytes in two files. Many sets number theirs from 0 in each."""
    same: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place, _, _, _, key, mark in items:
        same[key, mark].append(files[place].name)
    return [f"{key} in {' and '.join(names)}" for (key, _), names in same.items() if len(names) > 1]


def _content(files: Sequence[Path], item: Item) -> bytes:
    """The encoded image. Raises UnreadableImage."""
    place, offset, size, _, key, _ = item
    try:
        with files[place].open("rb") as file:  # none stays open: there may be more than a process may have
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise _unreadable(files, item, error) from error
    if len(content) < size:
        raise UnreadableImage(f"{key} of {files[place]} is cut short")
    return content


def _window(files: Sequence[Path], item: Item) -> BufferedReader:
    """The same as an open file. Raises UnreadableImage."""
    place, offset, size, *_ = item
    try:
        return BufferedReader(Window(files[place], offset, size))
    except OSError as error:
        raise _unreadable(files, item, error) from error


def _unreadable(files: Sequence[Path], item: Item, error: OSError) -> UnreadableImage:
    return UnreadableImage(f"{item[4]} of {files[item[0]]} cannot be read: {error.strerror or error}")


def _read(item: Item, files: Sequence[Path], channels: Channels) -> tuple[AnyImage, int]:
    return read_image(_content(files, item), channels, f"{item[4]} of {files[item[0]]}"), item[3]
