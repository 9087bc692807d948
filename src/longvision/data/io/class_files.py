"""Names, colours and numbers of classes, from a file of any form that people and annotation tools write."""

from dataclasses import dataclass, replace
from pathlib import Path

from longvision.data.io.class_documents import Document, read_document
from longvision.data.io.class_entries import Entry, Mistake
from longvision.data.io.class_tables import read_table
from longvision.data.io.colours import spread_colours
from longvision.data.io.text import read_text
from longvision.data.problems import counted
from longvision.errors import MissingFileError, UserError
from longvision.types import IGNORE, Colour

FOLDER = Path(__file__).parents[2] / "recipes" / "classes"  # the files that come with the package
DOCUMENTS = (".json", ".yaml", ".yml")
LABELME_IGNORE = "__ignore__"  # Labelme's class of number -1, the first line of its labels.txt
VOID = (LABELME_IGNORE, "ignore", "ignored", "void", "unlabeled", "unlabelled", "unknown")  # names of value 255
LARGEST = 10 << 20  # bytes
HIGHEST = 65535  # value of a mask


@dataclass(frozen=True)
class ClassFile:
    """What a file says of classes and of the masks that show them. Class numbers follow the values that it gives, or
    else its order, from 0.

    Args:
        classes: their names.
        palette: a colour for each; those that the file leaves out are chosen.
        coloured: whether the file gives every colour, so that masks in colour can be read by them.
        ignore: values (or colours) of a mask's pixels that neither train nor count, as the mask file has them.
        binary: whether masks show class 1 by any value from 128, class 0 by any below.
        values: of the classes in masks; none where they are 0 to K - 1.
        numbered: False where the file's program numbers no classes in masks, so that their colours alone count.
        notes: what the commands tell of how the file was read.
    """

    classes: list[str]
    palette: list[Colour]
    coloured: bool = False
    ignore: tuple[int | Colour, ...] = ()
    binary: bool = False
    values: tuple[int, ...] = ()
    numbered: bool = True
    notes: tuple[str, ...] = ()


def read_classes(file: str | Path) -> ClassFile:
    """The classes in a file: a path, or the name of one that comes with the package, such as camvid.

    JSON and YAML hold {"classes": [{"name": "road", "color": [128, 64, 128]}, ...]} (colours may be left out), with
    "ignore": 255 and "binary": true where they apply, or {"road": [128, 64, 128], ...}, or what YOLO, COCO, Hugging
    Face, Supervisely, QuPath and Mapillary write. Any other file holds a class a line: "road", "road 128 64 128",
    "128 64 128 road", "7 road", columns with a heading, or CVAT's labelmap.txt. Empty lines and lines that begin with #
    do not count.

    Raises:
        UserError: what cannot be read whole, with its line.
    """
    path = find_classes(file)
    notes: list[str] = []
    if (size := path.stat().st_size) > LARGEST:
        raise UserError(
            f"{path} has {size >> 20} MB, more than a list of classes has: give a file with the classes alone, such as "
            "the categories of COCO's, at most 10 MB"
        )
    text = read_text(path, notes)
    try:
        found = _class_file(_read(path, text, notes), notes)
    except Mistake as error:
        where = f"{path}, line {error.line}:" if error.line else str(path)
        raise UserError(" ".join(f"{where} {error}".split())) from error  # names may have lines in them
    return replace(found, notes=tuple(note if note.startswith(str(path)) else f"{path}: {note}" for note in notes))


def find_classes(file: str | Path) -> Path:
    """The file itself, or the packaged one of that name, with or without .json."""
    for path in (Path(file), FOLDER / file, FOLDER / f"{file}.json"):
        if path.is_file():
            return path
    packaged = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
    raise MissingFileError(f"{file} is no file: give a file of class names, or one of {packaged}")


def _read(path: Path, text: str, notes: list[str]) -> Document:
    start = text.lstrip()[:1]
    if path.suffix.lower() in DOCUMENTS or (start in ("{", "[") and text.rstrip()[-1:] in ("}", "]")):
        return read_document(text, path.suffix.lower() not in DOCUMENTS[1:])
    if start == "<":
        raise Mistake("is XML, as Label Studio's configuration is: write the names of the classes, one a line")
    if path.suffix.lower() == ".py":
        raise Mistake("is a program: write the names of the classes, one a line")
    return Document(read_table(text, notes))


def _class_file(found: Document, notes: list[str]) -> ClassFile:
    entries = _without_ignored(found.entries, notes)
    if not 2 <= len(entries) <= IGNORE:
        raise Mistake(f"has {counted(len(entries), 'class')}: expected 2 to {IGNORE}, one a line or in a list")
    if found.binary and len(entries) != 2:
        raise Mistake(f"has {len(entries)} classes: binary masks show 2")
    _refuse_doubles(entries)
    if marked := next((entry for entry in entries if not entry.name.isprintable()), None):
        raise Mistake(f"the name {marked.name!r} has characters that cannot be printed", marked.line)
    entries, values = _in_order(entries)
    given = {entry.colour for entry in entries if entry.colour}
    others = (colour for colour in spread_colours(len(entries) + len(given)) if colour not in given)
    palette = [entry.colour or next(others) for entry in entries]
    coloured = all(entry.colour for entry in entries)
    if not found.numbered and not coloured:
        raise Mistake("gives neither the values of the classes in masks nor the colours of all: add one of the two")
    names = [entry.name for entry in entries]
    return ClassFile(names, palette, coloured, found.ignore, found.binary, values, found.numbered)


def _without_ignored(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """Names that stand for pixels that do not count: of Labelme, and of the value that never does."""
    kept = [entry for entry in entries if not (entry.value == IGNORE and entry.name.lower() in VOID)]
    if [entry.name for entry in kept[1:]].count(LABELME_IGNORE):
        raise Mistake(f"has {LABELME_IGNORE} among the classes: expected it in the first line, as Labelme writes it")
    if kept and kept[0].name == LABELME_IGNORE:
        kept = kept[1:]
    if dropped := [entry.name for entry in entries if entry not in kept]:
        notes.append(f"{', '.join(dropped)} is no class: value {IGNORE} of a mask does not count")
    return kept


def _refuse_doubles(entries: list[Entry]) -> None:
    lines: dict[tuple[str, object], int] = {}
    for entry in entries:
        for word, thing in (("name", entry.name), ("colour", entry.colour), ("value", entry.value)):
            if thing is None:
                continue
            if (word, thing) in lines:
                raise Mistake(f"the {word} {thing} is line {lines[word, thing]}'s too", entry.line)
            lines[word, thing] = entry.line


def _in_order(entries: list[Entry]) -> tuple[list[Entry], tuple[int, ...]]:
    """By the values that the file gives; those, unless they are 0, 1, 2, …"""
    unnumbered = [entry for entry in entries if entry.value is None]
    if len(unnumbered) == len(entries):
        return entries, ()
    if unnumbered:
        raise Mistake(f"{unnumbered[0].name} has no number, as other classes have", unnumbered[0].line)
    entries = sorted(entries, key=lambda entry: entry.value or 0)
    values = tuple(entry.value or 0 for entry in entries)
    if values[-1] > HIGHEST:
        raise Mistake(f"the value {values[-1]} is none of a mask: expected 0 to {HIGHEST}", entries[-1].line)
    return entries, () if values == tuple(range(len(values))) else values
