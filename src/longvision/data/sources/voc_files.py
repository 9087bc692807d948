"""Pascal VOC's files: one XML file an image, and lists of image names."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from PIL import Image

from longvision.data.io.listing import files_in, is_hidden
from longvision.data.io.text import parse_xml, read_text
from longvision.data.problems import listing, refuse
from longvision.data.sources.objects import Box
from longvision.data.splits import choose, read_name
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

CORNERS = ("xmin", "ymin", "xmax", "ymax")
EXPECTED = "expected size and objects, each with a name and a bndbox of xmin, ymin, xmax, ymax"
TRUTHS = {"0": False, "false": False, "no": False, "": False, "1": True, "true": True, "yes": True}
UNKNOWN = ("unspecified", "none", "null", "unknown", "n/a")  # as VOC itself says of a pose: nothing is known
FLAGS = re.compile(r"\s+[+-]?[01]$")  # whether a class is in the image, in VOC's lists of one class
DIFFICULT, ENCODED, RENAMED, SIZELESS, ZERO = (
    "objects have a word for difficult that says nothing, and are read as not difficult",
    "XML files are not UTF-8 and are read as Western European",
    "XML files name another image than the one called as they are, which is used",
    "XML files have no size, which is the image's own",
    "boxes begin at 0, but VOC counts pixels from 1: where all of a set do, they are read a pixel too far left and up",
)

Remarks = defaultdict[str, list[str]]  # what is told of a set -> where it was found


@dataclass(frozen=True)
class Entry:
    """One XML file. Boxes as they stand there: pixels count from 1, the last ones belong to the object."""

    name: str
    size: tuple[int, int] | None  # height and width; None where the file does not say them
    objects: list[tuple[str, Box, bool]]  # class, box, whether it is difficult
    filename: str = ""  # of the image, as the file says it

    def words(self, number: int) -> str:
        return f"object {number + 1} of {self.name}"


def read_entry(file: Path, remarks: Remarks) -> Entry:
    """Raises UserError for what is wrong with a file, naming the object and the word."""
    notes: list[str] = []
    root = parse_xml(file, notes)
    if notes:
        remarks[ENCODED].append(file.name)
    try:
        if root.tag != "annotation":
            raise UserError(f"its root is {root.tag}, not annotation")
        size = _size(root)
        objects = [_object(found, number, file.name, remarks) for number, found in enumerate(root.findall("object"), 1)]
    except UserError as error:
        raise UserError(f"{file} is not an annotation of VOC's ({error}): {EXPECTED}") from error
    filename = re.split(r"[/\\]", (root.findtext("filename") or "").strip())[-1]
    if size is None:
        remarks[SIZELESS].append(file.name)
    return Entry(file.stem, size, objects, filename)


def _size(root: Element) -> tuple[int, int] | None:
    """Some programs write none, or zeros."""
    words = [_only_text(root, f"size/{side}", "the image") for side in ("height", "width")]
    if all(word in ("", "0") for word in words):
        return None
    height, width = (_number(word, f"size/{side}") for word, side in zip(words, ("height", "width")))
    if any(side != int(side) or side < 1 for side in (height, width)):
        raise UserError(f"its size is {words[0]} high and {words[1]} wide")
    return int(height), int(width)


def _object(found: Element, number: int, file: str, remarks: Remarks) -> tuple[str, Box, bool]:
    where = f"object {number}"
    name = _only_text(found, "name", where)
    if not name:
        raise UserError(f"{where} has no name")
    if found.find("bndbox") is None:
        shapes = ", ".join(child.tag for child in found if child.tag not in ("name", "difficult"))
        raise UserError(f"{where}, {name}, has no bndbox, but {shapes or 'nothing'}")
    words = [_only_text(found, f"bndbox/{corner}", where) for corner in CORNERS]
    xmin, ymin, xmax, ymax = (
        _number(word, f"{where}: bndbox/{corner}") for word, corner in zip(words, CORNERS, strict=True)
    )
    if 0 in (xmin, ymin):
        remarks[ZERO].append(f"{where} of {file}")
    return name, (xmin, ymin, xmax, ymax), _is_difficult(_only_text(found, "difficult", where), where, file, remarks)


def _is_difficult(word: str, where: str, file: str, remarks: Remarks) -> bool:
    if word.lower() in UNKNOWN:
        remarks[DIFFICULT].append(f"{word}: {where} of {file}")
        return False
    if word.lower() not in TRUTHS:
        raise UserError(f"{where} has difficult {word!r}, which is neither 0 nor 1")
    return TRUTHS[word.lower()]


def _only_text(element: Element, path: str, where: str) -> str:
    """Of the one element there; "" where there is none."""
    found = element.findall(path)
    if len(found) > 1:
        raise UserError(f"{where} has {len(found)} of {path}")
    return (found[0].text or "").strip() if found else ""


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in word:
        raise UserError(f"{where} is {word!r}, not a number" if word else f"no {where}")
    return value


def find_lists(folder: Path, notes: list[str]) -> dict[Split, str]:
    """Which list is which split, without its ending: train, Validation, test2007. Lists of one class are none."""
    names = [path.stem for path in map(Path, files_in(folder)) if path.suffix == ".txt"]
    chosen = choose([name for name in names if read_name(name).is_split], str(folder))
    notes += chosen.notes
    return chosen.names


def read_list(file: Path, folder: Path, notes: list[str]) -> list[str]:
    """Names of images, one a line, of which `folder` has an XML file each, or most.

    A line may hold a path, the ending of an image, and a flag behind it, as VOC's lists of one class have; a name may
    have blanks in it. What is meant is decided by the XML files that are there.
    """
    remedy = "write the names of its images there, one a line"
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist: {remedy}")
    lines = [line.strip() for line in read_text(file, notes).split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty: {remedy}")
    xml = {path.stem for path in folder.iterdir() if path.suffix == ".xml"}
    names = [_listed(line, xml, file) for line in lines]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        notes.append(f"{file} lists {len(twice)} images more than once ({listing(twice)}): each is used once")
    return list(dict.fromkeys(names))


def _listed(line: str, xml: set[str], file: Path) -> str:
    """The name of the XML file that a line means, or what it would be called."""
    spellings: list[str] = []
    for whole in (line, FLAGS.sub("", line)):
        name = re.split(r"[/\\]", whole)[-1]
        stem, dot, ending = name.rpartition(".")
        spellings += [name, stem] if dot and f".{ending.lower()}" in endings() else [name]
    found = sorted({name for name in spellings if name in xml})
    if len(found) > 1:
        raise UserError(f"{file}: the line {line!r} may mean {' or '.join(found)}: rename one of them")
    return found[0] if found else spellings[-1]


def endings() -> set[str]:
    """Of files that may be images, and of XML: some lists name the annotations."""
    return {*Image.registered_extensions(), ".xml"}


def list_images(folder: Path) -> dict[str, list[str]]:
    """Name without its ending -> the image files of that name; labels that lie beside them are left out."""
    found = defaultdict(list)
    for file in sorted(folder.iterdir()):
        if not is_hidden(file.name) and file.suffix.lower() in Image.registered_extensions():
            found[file.stem].append(str(file))
    return found


def image_of(entry: Entry, images: dict[str, list[str]], folder: Path, remarks: Remarks) -> str:
    """The image file that an XML file belongs to: the one called as it is."""
    named = Path(entry.filename)
    same = images.get(entry.name, [])
    if same and entry.filename and named.stem != entry.name and named.suffix.lower() in endings():
        remarks[RENAMED].append(f"{entry.name}.xml: {entry.filename}")
    if len(same) > 1:
        same = [file for file in same if Path(file).name == entry.filename] or same
    refuse(
        [Path(file).name for file in same[1:]],
        f"images beside {Path(same[0]).name} have its name" if same else "",
        f"keep the one in {folder} that was labelled",
    )
    if same:
        return same[0]
    elsewhere = folder / entry.filename
    return str(elsewhere if entry.filename and elsewhere.is_file() else folder / f"{entry.name}.jpg")
