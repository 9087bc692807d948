"""Objects labelled as Pascal VOC does: one XML file an image, and lists of names that make the splits."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from longvision.data.io.colours import spread_colours
from longvision.data.io.images import is_hidden
from longvision.data.problems import refuse, refuse_many, require_folder
from longvision.data.sources.objects import Box, ImageRecord, ObjectSource, is_outside
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Entry:
    """One XML file. Boxes as they stand there: pixels count from 1, the last ones belong to the object."""

    name: str
    height: int
    width: int
    objects: list[tuple[str, Box, bool]]  # class, box, whether it is difficult

    def words(self, number: int) -> str:
        return f"object {number + 1} of {self.name}"


class VocSource(ObjectSource):
    """The splits of a Pascal VOC set. Class numbers follow the sorted names in the training annotations.

    A box of VOC's counts pixels from 1 and includes its last row and column; as in its devkit, xmin, ymin, xmax, ymax
    become x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax. Objects marked `difficult` are neither trained on nor
    counted when they are missed: they are treated as COCO's crowds. Boxes up to a pixel over the edge are cut there;
    boxes that end before they begin are left out with a warning while they are at most 1 % of all. Where xmin is xmax,
    a box is one pixel wide: one of a single point, as BCCD has two, is kept as the pixel that it means by this rule.
    `path` as of `VocData`.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.root = _root(Path(path))
        self.folder = self.root / "Annotations"
        self.images = _images(self.root / "JPEGImages")
        self.has_test = self._has_test()
        self.entries: dict[Split, list[Entry]] = {"train": self._entries("train")}
        self.classes = sorted({name for entry in self.entries["train"] for name, _, _ in entry.objects})
        if not self.classes:
            raise UserError(f"{self._list('train')} lists no image with objects: expected some to learn from")
        self.palette = spread_colours(len(self.classes))

    def labels_of(self, split: Split) -> Path:
        return self.folder

    def records(self, split: Split) -> list[ImageRecord]:
        entries = self.entries.pop(split, None) or self._entries(split)
        self._check(entries)
        records, flat = [], []
        for index, entry in enumerate(entries):
            file = self.images.get(entry.name, str(self.root / "JPEGImages" / f"{entry.name}.jpg"))
            record = ImageRecord(file, index, entry.height, entry.width)
            for number, (name, box, difficult) in enumerate(entry.objects):
                if not record.add(from_one(box), self.classes.index(name), difficult):
                    flat.append(entry.words(number))
            records.append(record)
        total = sum(len(entry.objects) for entry in entries)
        refuse_many(flat, total, f"of the {total} boxes in {self.folder} ({split}) have no area")
        return records

    def _check(self, entries: list[Entry]) -> None:
        """Each class is one that trains, and each box lies in its image."""
        unknown, outside = [], []
        for entry in entries:
            for number, (name, box, _) in enumerate(entry.objects):
                if name not in self.classes:
                    unknown.append(f"{entry.words(number)}: {name}")
                if is_outside(from_one(box), entry.height, entry.width):
                    outside.append(f"{entry.words(number)}: {box} in {entry.height}x{entry.width}")
        where = f"in {self.folder}"
        refuse(unknown, f"objects {where} are of classes that no training image has", "correct or remove them")
        refuse(outside, f"boxes {where} lie outside their images", "correct them: xmin, ymin, xmax, ymax in pixels")

    def _entries(self, split: Split) -> list[Entry]:
        names = _listed(self._list(split))
        missing = [name for name in names if not (self.folder / f"{name}.xml").is_file()]
        problem = f"images of {self._list(split)} have no XML file in {self.folder}"
        refuse(missing, problem, "add them, or shorten the list")
        return [read_entry(self.folder / f"{name}.xml") for name in names]

    def _list(self, split: Split) -> Path:
        return self.root / "ImageSets" / "Main" / f"{split}.txt"

    def _has_test(self) -> bool:
        """VOC publishes the test images' names, but of most years not their labels."""
        names = _listed(self._list("test")) if self._list("test").is_file() else []
        return any((self.folder / f"{name}.xml").is_file() for name in names)


def from_one(box: Box) -> Box:
    """VOC's corners, from 1 and inclusive, -> x1, y1, x2, y2 from 0, the last two exclusive."""
    xmin, ymin, xmax, ymax = box
    return xmin - 1, ymin - 1, xmax, ymax


def read_entry(file: Path) -> Entry:
    try:
        root = ElementTree.parse(file).getroot()
        height, width = (int(_text(root, f"size/{side}")) for side in ("height", "width"))
        return Entry(file.stem, height, width, [_object(found) for found in root.findall("object")])
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(
            f"{file} is not an annotation of VOC's ({error}): "
            "expected size and objects, each with a name and a bndbox of xmin, ymin, xmax, ymax"
        ) from error


def _object(found: ElementTree.Element) -> tuple[str, Box, bool]:
    xmin, ymin, xmax, ymax = (float(_text(found, f"bndbox/{corner}")) for corner in CORNERS)
    difficult = (found.findtext("difficult") or "0").strip() not in ("0", "")
    return _text(found, "name").strip(), (xmin, ymin, xmax, ymax), difficult


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise UserError(f"no {path}")
    return text


def _root(path: Path) -> Path:
    require_folder(path, "give a folder with Annotations/, JPEGImages/ and ImageSets/Main/")
    below = sorted(folder for folder in path.iterdir() if (folder / "Annotations").is_dir())
    root = path if (path / "Annotations").is_dir() or len(below) != 1 else below[0]
    for needed in ("Annotations", "JPEGImages", "ImageSets/Main"):
        require_folder(root / needed, f"expected Pascal VOC's layout in {root}")
    return root


def _listed(file: Path) -> list[str]:
    """Names of images, one a line; what stands behind a name, as in VOC's lists of one class, is not read."""
    remedy = "write the names of its images there, one a line"
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist: {remedy}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8: {remedy}") from error
    names = [line.split()[0] for line in lines if line.split()]
    if not names:
        raise UserError(f"{file} is empty: {remedy}")
    return names


def _images(folder: Path) -> dict[str, str]:
    """Name without its ending -> path."""
    return {file.stem: str(file) for file in sorted(folder.iterdir()) if not is_hidden(file.name)}
