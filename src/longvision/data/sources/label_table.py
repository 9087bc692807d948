"""Images with labels in a table: one class an image, or several."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache, cached_property, partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, is_image, read_image
from longvision.data.io.listing import ending, files_below, files_in
from longvision.data.io.threads import in_threads
from longvision.data.leftovers import unlisted
from longvision.data.problems import counted, listing, refuse_many
from longvision.data.sources.base import (
    ImageSet,
    Listed,
    Source,
    Trained,
    hold_out,
    look_alike,
    relative,
    unknown_classes,
)
from longvision.data.sources.label_columns import Columns, LabelRow, LabelTable, read_label_table
from longvision.data.sources.label_splits import by_split
from longvision.data.splits import choose, read_name
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

TABLES = (".csv", ".tsv")
FOUND = Columns()  # all by their names
Item = tuple[str, tuple[int, ...]]  # an image's path, and the numbers of its classes


class LabelTableSource(Source[Any]):
    """A label is a class number or, of `multilabel`, a list of K numbers: 1 for each class of the image, else 0.

    Args:
        path: a table, or a folder with one, or with one for each split.
        channels: of the images.
        seed: draws those that validate, where none do.
        columns: what the user says of the table.
        images: the folder in which paths in the table begin; None for the table's own.
        multilabel: whether an image may have any number of classes; None: whether some image has.
        trained: what a model that is to be evaluated was trained on.
    """

    def __init__(
        self,
        path: str | Path,
        channels: Channels = 3,
        seed: int = 0,
        columns: Columns = FOUND,
        images: str | None = None,
        multilabel: bool | None = None,
        trained: Trained | None = None,
    ) -> None:
        self.name, self.channels, self.seed, self.trained = str(path), channels, seed, trained
        tables = {file: (split, read_label_table(file, columns, self.notes)) for file, split in _files(Path(path))}
        self.folder = Path(images) if images else next(iter(tables)).parent
        self.rows = by_split(list(tables.values()), self.name, self.notes, evaluates=trained is not None)
        flags = _columns_of([table for _, table in tables.values()])
        self.multilabel = self._is_multilabel(trained.multilabel if trained else multilabel, bool(flags))
        self._leave_out_unlabelled_test()
        self.has_test, self.splits = "test" in self.rows, list(self.rows)
        self.draws_validation = trained is None and "val" not in self.rows
        self.classes = trained.classes if trained else self._find_classes(flags)
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        self._check_labels()
        self._items: dict[Split, list[Item]] = {}
        self._left_out: dict[Split, int] = {}

    def split(self, split: Split) -> ImageSet[Any]:
        """The images that are there and can be read; a few that are not are told once."""
        held_out = self.draws_validation and split != "test"
        source: Split = "train" if held_out else split
        if source not in self._items:
            self._items[source] = self._readable(source)
        items = self._items[source]
        if held_out:
            train, val = hold_out(_rarest(items), self.seed)
            items = [items[row] for row in (train if split == "train" else val)]
        read = partial(_read, channels=self.channels, classes=len(self.classes) if self.multilabel else None)
        images = ImageSet(items, read, itemgetter(0))
        images.left_out = 0 if held_out and split == "val" else self._left_out[source]
        return images

    def identified(self, split: Split, row: int, item: Item) -> Listed:
        path, labels = item
        return Listed(relative(path, str(self.folder)), "|".join(self.classes[label] for label in labels), path)

    def _is_multilabel(self, wanted: bool | None, flags: bool) -> bool:
        everything = list(chain.from_iterable(self.rows.values()))
        several = next((row for row in everything if len(row.labels) > 1), None)
        if wanted is False and several:
            which = "the model was trained on" if self.trained else "--data.multilabel false is for"
            raise UserError(
                f"{several.place}: {several.image} has {counted(len(several.labels), 'label')} "
                f"({listing(several.labels)}), and {which} one class an image"
            )
        if wanted is None:
            wanted = several is not None or (flags and any(not row.labels for row in everything))
            read, other = ("any number of labels", "false") if wanted else ("one label", "true")
            if flags or wanted:
                self.notes.append(f"{self.name}: an image has {read} (--data.multilabel {other} if this is wrong)")
        return wanted

    def _leave_out_unlabelled_test(self) -> None:
        """Sets of competitions come with test images alone."""
        if "test" in self.rows and len(self.rows) > 1 and not any(row.labels for row in self.rows["test"]):
            self.notes.append(f"{self.name}: no test image has a label: they are not used")
            del self.rows["test"]

    def _find_classes(self, flags: list[str] | None) -> list[str]:
        used = set(chain.from_iterable(row.labels for row in self.rows["train"]))
        if not used:
            raise UserError(f"{self.name}: no training image has a label")
        if missing := [name for name in flags or [] if name not in used]:
            self.notes.append(f"no training image is of {counted(len(missing), 'class')}: {listing(missing)}")
        classes = flags or sorted(used)
        self.notes += look_alike(classes, self.name)
        return classes

    def _check_labels(self) -> None:
        """Raises UserError for the first row with an image that an earlier one has, a label that is not known, or none
        where each has one; and for a single class."""
        places: dict[str, str] = {}
        for row in chain.from_iterable(self.rows.values()):
            if row.image in places:
                raise UserError(
                    f"{row.place}: {row.image} is in {places[row.image]} too: give an image one line, its labels as "
                    "cat|dog"
                )
            places[row.image] = row.place
            if unknown := [label for label in row.labels if label not in self._numbers]:
                if self.trained:
                    raise unknown_classes(row.place, unknown, self.classes, "correct or remove such lines")
                raise UserError(f"{row.place}: no training image has the label {unknown[0]!r}: correct it, or add some")
            if not row.labels and not self.multilabel:
                hint = "" if self.trained else ", or let images have any number of labels: --data.multilabel true"
                raise UserError(f"{row.place}: {row.image} has no label: label or remove it{hint}")
        if len(self.classes) < 2 and not self.multilabel:
            raise UserError(
                f"{self.name} has the one class {self.classes[0]!r} for all images: two are needed at least, or "
                "--data.multilabel true for images that may be of it or not"
            )

    def _readable(self, split: Split) -> list[Item]:
        """Raises UserError for more missing or unreadable images than are tolerated."""
        rows, files = self.rows[split], self._files
        there = [(files[row.image], row) for row in rows if row.image in files]
        fine = in_threads(is_image, [file for file, _ in there])
        bad = [f"{row.place}: {row.image}" for row in rows if row.image not in files]
        bad += [f"{row.place}: {row.image}" for (_, row), good in zip(there, fine, strict=True) if not good]
        problem = f"of {len(rows)} images that {self.name} names are not in {self.folder}, or are no images"
        refuse_many(bad, len(rows), problem, self.tolerated)
        self._left_out[split] = len(bad)
        self.notes += unlisted(self.folder, files.values(), Path(self.name)) if split == "train" else []
        return [
            (file, tuple(sorted(map(self._numbers.__getitem__, row.labels))))
            for (file, row), good in zip(there, fine, strict=True)
            if good
        ]

    @cached_property
    def _files(self) -> dict[str, str]:
        """Of all splits: what the tables call an image -> its path. Raises UserError as `_Files.find`."""
        return _Files(self.folder).find(list(chain.from_iterable(self.rows.values())), self.notes)


class _Files:
    """Images in a folder by what a table calls them: their paths in it, or, told, their names alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_name: dict[str, list[str]] | None = None

    def find(self, rows: Sequence[LabelRow], notes: list[str]) -> dict[str, str]:
        """Paths of those that are there, by what rows call them. Raises UserError for a name that several files have,
        and for a file that two rows have."""
        found, searched = {}, []
        first: dict[str, LabelRow] = {}  # of a file, however its path is written; a link is a file of its own
        resolved = cache(os.path.realpath)
        for row in rows:
            path = os.path.join(self.folder, row.image.replace("\\", "/") if os.sep == "/" else row.image)
            if not os.path.isfile(path):
                path = self._search(row)
                searched += [row.image] * bool(path)
            if path:
                folder, name = os.path.split(path)
                other = first.setdefault(os.path.join(resolved(folder), name), row)
                if other is not row:
                    raise UserError(
                        f"{row.place}: {row.image} is the file that {other.place} calls {other.image}: give an image "
                        "one line"
                    )
                found[row.image] = path
        if searched:
            where = f"{counted(len(searched), 'image')} that are named without a part of their path, or an ending"
            notes.append(f"{where}, are found in {self.folder} ({listing(searched)})")
        return found

    def _search(self, row: LabelRow) -> str:
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for file in files_below(self.folder):
                for name in {os.path.basename(file), os.path.splitext(os.path.basename(file))[0]}:
                    self._by_name[name].append(file)
        wanted = row.image.replace("\\", "/")
        found = [
            file
            for file in self._by_name.get(wanted.rsplit("/", 1)[-1], [])
            if f"/{wanted}" in (f"/{file}"[-len(wanted) - 1 :], f"/{os.path.splitext(file)[0]}"[-len(wanted) - 1 :])
        ]
        if len(found) > 1:
            raise UserError(f"{row.place}: {row.image} may be {listing(found)}: write its path in {self.folder}")
        return found[0] if found else ""


def _files(path: Path) -> list[tuple[Path, Split | None]]:
    """The tables, each with the split that it is called as. Raises UserError where none is certain."""
    if path.is_file():
        return [(path, None)]
    if not path.is_dir():
        raise MissingFileError(f"{path} does not exist: give a CSV file of images and labels, or its folder")
    names = [name for name in files_in(path) if ending(name) in TABLES]
    if len(names) == 1:
        return [(path / names[0], None)]
    stems = {Path(name).stem: name for name in names}
    said = [stem for stem in stems if read_name(stem).is_split]
    if not said or len(said) < len(names):
        raise UserError(f"{path} holds the tables {listing(names) or 'none'}: give --data.path, the one that is meant")
    return [(path / stems[stem], split) for split, stem in choose(said, str(path)).names.items()]


def _columns_of(tables: Sequence[LabelTable]) -> list[str] | None:
    """The classes of columns of 0 and 1, which all tables must have; None where cells hold the labels."""
    first = tables[0]
    for table in tables[1:]:
        if set(table.classes or ()) != set(first.classes or ()):
            raise UserError(f"{table.file} has other columns of classes than {first.file}: give both the same")
    return first.classes


def _rarest(items: Sequence[Item]) -> np.ndarray:
    """Of each image the class that the fewest images have, so that small ones validate too; images without any are a
    class of their own."""
    counts = Counter(label for _, labels in items for label in labels)
    chosen = [min(labels, key=lambda label: (counts[label], label), default=-1) for _, labels in items]
    return np.unique(chosen, return_inverse=True)[1]


def _read(item: Item, channels: Channels, classes: int | None) -> tuple[AnyImage, int | list[float]]:
    path, labels = item
    image = read_image(path, channels)
    if classes is None:
        return image, labels[0]
    return image, [float(number in labels) for number in range(classes)]
