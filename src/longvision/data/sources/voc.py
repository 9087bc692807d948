"""Objects labelled as Pascal VOC does: one XML file an image, and lists of names that make the splits."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longvision.data.io.colours import spread_colours
from longvision.data.io.headers import upright_size
from longvision.data.io.listing import ending, files_in
from longvision.data.problems import counted, listing, refuse, refuse_many, require_folder
from longvision.data.sources.base import Trained, look_alike, unknown_classes
from longvision.data.sources.objects import Box, ImageRecord, ObjectSource, is_outside, wide_and_high
from longvision.data.sources.voc_files import Entry, Remarks, find_lists, image_of, list_images, read_entry, read_list
from longvision.errors import UserError
from longvision.types import Size, Split


class VocSource(ObjectSource):
    """The splits of a Pascal VOC set. Class numbers follow the sorted names in the training annotations.

    A box of VOC's counts pixels from 1 and includes its last row and column; as in its devkit, xmin, ymin, xmax, ymax
    become x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax. Objects marked `difficult` are neither trained on nor
    counted when they are missed: they are treated as COCO's crowds. Boxes up to a pixel over the edge are cut there;
    boxes that end before they begin are left out with a warning while they are at most 1 % of all. Where xmin is xmax,
    a box is one pixel wide: one of a single point, as BCCD has two, is kept as the pixel that it means by this rule.
    `path` as of `VocData`.
    """

    def __init__(self, path: str | Path, trained: Trained | None = None, channels: int = 3) -> None:
        super().__init__(path, channels)
        self.trained = trained
        self.root = _root(Path(path), () if trained else ("ImageSets/Main",))
        self.folder = self.root / "Annotations"
        self.lists = self._find_lists()
        self.images = list_images(self.root / "JPEGImages")
        self.has_test = self._has_test()
        self.entries: dict[Split, list[Entry]] = {}
        if trained:
            self.classes, self.splits = trained.classes, list(self.lists) or ["train"]
        else:
            self.entries["train"] = self._entries("train")
            self.classes = sorted({name for entry in self.entries["train"] for name, _, _ in entry.objects})
            self.notes += [*look_alike(self.classes, self._list("train")), *self._unlisted()]
        if not self.classes:
            raise UserError(f"{self._list('train')} lists no image with objects: expected some to learn from")
        self.palette = spread_colours(len(self.classes))

    def _find_lists(self) -> dict[Split, str]:
        folder = self.root / "ImageSets" / "Main"
        return find_lists(folder, self.notes) if folder.is_dir() else {}

    def _unlisted(self) -> list[str]:
        """The line, or none, for labels that no list of a split uses."""
        listed = {name for split in self.lists for name in read_list(self._list(split), self.folder, [])}
        names = [stem for stem in self._xml_files() if stem not in listed]
        lists = ", ".join(self.lists.values())
        what = f"{counted(len(names), 'XML file')} in {self.folder}"
        return [f"{what} that the lists {lists} do not name ({listing(names)}): not used"] if names else []

    def _xml_files(self) -> list[str]:
        return [Path(name).stem for name in files_in(self.folder) if ending(name) == ".xml"]

    def labels_of(self, split: Split) -> Path:
        return self.folder

    def records(self, split: Split) -> list[ImageRecord]:
        files_and_entries = self._sized(self.entries.pop(split, []) or self._entries(split), split)
        entries = [entry for _, entry in files_and_entries]
        self._check(entries)
        records, flat = [], []
        for index, (file, entry) in enumerate(files_and_entries):
            record = ImageRecord(file, index, *size_of(entry))
            for number, (name, box, difficult) in enumerate(entry.objects):
                if not record.add(from_one(box), self.classes.index(name), difficult):
                    flat.append(f"{entry.words(number)}: {_corners(box)}")
            records.append(record)
        total = sum(len(entry.objects) for entry in entries)
        refuse_many(flat, total, f"of the {total} boxes in {self.folder} ({split}) have no area")
        return records

    def _sized(self, entries: list[Entry], split: Split) -> list[tuple[str, Entry]]:
        """Each with its image's file, and with the image's size where the XML file does not say it."""
        remarks: Remarks = defaultdict(list)
        files = [image_of(entry, self.images, self.root / "JPEGImages", remarks) for entry in entries]
        self._tell(remarks, split)
        found = [entry.size or upright_size(file) for file, entry in zip(files, entries, strict=True)]
        unknown = [file for file, size in zip(files, found, strict=True) if size is None]
        missing = [file for file in unknown if not os.path.exists(file)]
        refuse(missing, "images whose XML files have no size do not exist", "add them")
        # one that exists cannot be read, and is skipped for that: its objects need no place
        sized = [
            replace(entry, size=size) if size else replace(entry, size=(0, 0), objects=[])
            for entry, size in zip(entries, found, strict=True)
        ]
        return list(zip(files, sized, strict=True))

    def _check(self, entries: list[Entry]) -> None:
        """Each class is one that trains, and each box lies in its image."""
        unknown, outside = [], []
        for entry in entries:
            height, width = size_of(entry)
            for number, (name, box, _) in enumerate(entry.objects):
                if name not in self.classes and self.trained:
                    file = self.folder / f"{entry.name}.xml"
                    raise unknown_classes(file, [name], self.classes, "rename or remove the object")
                if name not in self.classes:
                    unknown.append(f"{entry.words(number)}: {name}")
                if is_outside(from_one(box), height, width):
                    outside.append(f"{entry.words(number)}: {_corners(box)} in an image {wide_and_high(height, width)}")
        where = f"in {self.folder}"
        refuse(unknown, f"objects {where} are of classes that no training image has", "correct or remove them")
        refuse(outside, f"boxes {where} lie outside their images", "correct them: xmin, ymin, xmax, ymax in pixels")

    def _entries(self, split: Split) -> list[Entry]:
        if self.trained and not self.lists:  # all that there are
            names = self._xml_files()
        else:
            names = read_list(self._list(split), self.folder, self.notes)
        missing = [name for name in names if not (self.folder / f"{name}.xml").is_file()]
        problem = f"images of {self._list(split)} have no XML file in {self.folder}"
        refuse(missing, problem, "add them, or shorten the list")
        remarks: Remarks = defaultdict(list)
        entries = [read_entry(self.folder / f"{name}.xml", remarks) for name in names]
        self._tell(remarks, split)
        return entries

    def _tell(self, remarks: Remarks, split: Split) -> None:
        where = f"{self.name} ({split})"
        self.notes += [f"{where}: {len(found)} {what} ({listing(found)})" for what, found in remarks.items()]

    def _list(self, split: Split) -> Path:
        return self.root / "ImageSets" / "Main" / f"{self.lists.get(split, split)}.txt"

    def _has_test(self) -> bool:
        """VOC publishes the test images' names, but of most years not their labels, which is told."""
        file = self._list("test")
        names = read_list(file, self.folder, []) if file.is_file() else []
        labelled = any((self.folder / f"{name}.xml").is_file() for name in names)
        if names and not labelled:
            self.notes.append(f"none of the {counted(len(names), 'image')} of {file} has an XML file: it is not used")
        return labelled


def from_one(box: Box) -> Box:
    """VOC's corners, from 1 and inclusive, -> x1, y1, x2, y2 from 0, the last two exclusive."""
    xmin, ymin, xmax, ymax = box
    return xmin - 1, ymin - 1, xmax, ymax


def size_of(entry: Entry) -> Size:
    assert entry.size is not None  # `_sized` has seen to it
    return entry.size


def _corners(box: Box) -> str:
    return " ".join(f"{value:g}" for value in box)


def _root(path: Path, lists: Sequence[str]) -> Path:
    require_folder(path, "give a folder with Annotations/, JPEGImages/ and ImageSets/Main/")
    below = sorted(folder for folder in path.iterdir() if (folder / "Annotations").is_dir())
    root = path if (path / "Annotations").is_dir() or len(below) != 1 else below[0]
    for needed in ("Annotations", "JPEGImages", *lists):
        require_folder(root / needed, f"expected Pascal VOC's layout in {root}")
    return root
