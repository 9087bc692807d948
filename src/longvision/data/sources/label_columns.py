"""A table of images and their labels, as CSV: which column holds what, and what its cells mean."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longvision.data.io.listing import has_image_name
from longvision.data.io.text import read_text
from longvision.data.problems import listing
from longvision.errors import UserError

IMAGES = frozenset(
    "image|images|img|picture|file|filename|file name|path|file path|filepath|image path|image file|image name|"  # noqa: SIM905
    "image filename|img path|image id".split("|")
)
LABELS = frozenset(
    "label|labels|class|classes|class name|label name|category|categories|tag|tags|target|targets".split("|")  # noqa: SIM905
)
SPLITS = frozenset("split|set|subset|partition|usage|phase|data split".split("|"))  # noqa: SIM905
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
CERTAIN = "|;"  # between labels; no name has them
STRAY_QUOTE = 'close its quotation mark, or write a mark that is a part of a name twice, in quoted text: "24"" wide"'
EXPECTED = "expected a column of labels, or a column of 0 and 1 for each class"


@dataclass(frozen=True)
class Columns:
    """What a user says of a table, None where it is to be found.

    Args:
        image: the column of the images' paths.
        label: the column of labels.
        separator: what stands between several labels of one image; none where nothing does.
    """

    image: str | None = None
    label: str | None = None
    separator: str | None = None


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One image: where the row is, its path as it is written, its labels, and its split's name, "" without one."""

    place: str
    image: str
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class LabelTable:
    """One file. `classes` are those of its columns of 0 and 1, in their order, or None where cells hold the labels."""

    file: Path
    rows: list[LabelRow]
    classes: list[str] | None
    has_splits: bool


class _Cells:
    """The cells of a file below its heading."""

    def __init__(self, file: Path, notes: list[str]) -> None:
        self.file = file
        text = read_text(file, notes)
        heading = next((line for line in text.split("\n") if line.strip()), "")
        marks = [mark for mark in ",;\t" if mark in heading]
        if len(marks) != 1:
            raise UserError(
                f"{file} begins with {heading[:60]!r}: expected a heading of two columns or more, such as image,label"
            )
        rows = _rows_of(file, text, marks[0])
        if not rows:
            raise UserError(
                f"{file} has empty cells alone: expected a heading, such as image,label, and a line an image"
            )
        (_, self.heads), *self.rows = rows
        if image := next(filter(has_image_name, self.heads), None):
            raise UserError(f"{file} begins with the image {image}: put a heading above it, such as image,label")
        if twice := sorted({name for name in self.heads if name and self.heads.count(name) > 1}):
            raise UserError(f"{file} has several columns {listing(twice)}: keep one of each")
        for line, cells in self.rows:
            if len(cells) != len(self.heads):
                raise UserError(f"{file}, line {line}: it has {len(cells)} cells, the heading {len(self.heads)}")
        if not self.rows:
            raise UserError(f"{file} has no line below its heading: expected a line an image")

    def refuse_line_ends(self, names: Sequence[str]) -> None:
        """Raises UserError for what a quotation mark took together, in one of these columns."""
        for name in names:
            if found := next(((line, cell) for line, cell in self.of(name) if "\n" in cell), None):
                line, cell = found
                raise UserError(
                    f"{self.file}, line {line}: its {name} {cell[:60]!r} holds the end of a line: {STRAY_QUOTE}"
                )

    def of(self, name: str) -> list[tuple[int, str]]:
        """(line, cell) of a column."""
        at = self.heads.index(name)
        return [(line, cells[at]) for line, cells in self.rows]

    def find(self, asked: str | None, known: frozenset[str], what: str, option: str = "") -> str | None:
        """The column that was asked for, or the only one with a known name. Raises UserError."""
        if asked is not None:
            if asked not in self.heads:
                raise UserError(f"{self.file} has the columns {listing(self.heads)}: --data.{option} {asked} is none")
            return asked
        found = [name for name in self.heads if re.sub(r"[\s_-]+", " ", name).strip().lower() in known]
        if len(found) > 1:
            remedy = f"say which with --data.{option}" if option else "keep one"
            raise UserError(f"{self.file} has the columns {listing(found)}, each of which may hold {what}: {remedy}")
        return found[0] if found else None


def _rows_of(file: Path, text: str, mark: str) -> list[tuple[int, list[str]]]:
    """(first line, cells) of each row that is not empty. Raises UserError for what is no CSV."""
    reader = csv.reader(io.StringIO(text), delimiter=mark, skipinitialspace=True, strict=True)
    rows, line = [], 1
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows.append((line, [cell.strip() for cell in row]))
            line = reader.line_num + 1
    except csv.Error as error:  # without an end, it is met at that of the file
        raise UserError(f"{file}, line {line}: it is no CSV ({error}): {STRAY_QUOTE}") from error
    return rows


def read_label_table(file: Path, asked: Columns, notes: list[str]) -> LabelTable:
    """Raises UserError for what is no such table, or one that can be read in two ways; what was found is noted."""
    cells = _Cells(file, notes)
    image = cells.find(asked.image, IMAGES, "images", "image_column") or _column_of_files(cells, notes)
    split = cells.find(None, SPLITS - {asked.image, asked.label}, "splits")
    rest = [name for name in cells.heads if name and name not in (image, split)]
    label = cells.find(asked.label, LABELS - {image, split}, "labels", "label_column")
    if label is None and len(rest) == 1:
        label = rest[0]
        notes.append(f"{file}: its column {label} is taken for the labels")
    labelled = [label] if label else [name for name in rest if any(cell.lower() in FLAGS for _, cell in cells.of(name))]
    cells.refuse_line_ends([*filter(None, [image, split]), *labelled])
    if label is None:
        classes: list[str] | None = rest
        labels = _of_flags(cells, rest)
    else:
        classes, labels = None, _of_cells(cells, label, asked.separator, notes)
        if unread := [name for name in rest if name != label]:
            notes.append(f"{file}: columns that are not read: {listing(unread)}")
    splits = [cell for _, cell in cells.of(split)] if split else [""] * len(labels)
    rows = [
        LabelRow(f"{file}, line {line}", name, found, part)
        for (line, name), found, part in zip(cells.of(image), labels, splits, strict=True)
    ]
    if empty := [row.place for row in rows if not row.image]:
        raise UserError(f"{empty[0]}: it names no image")
    if split and (empty := [row.place for row in rows if not row.split]):
        raise UserError(f"{empty[0]}: its {split} is empty: write train, val or test")
    return LabelTable(file, rows, classes, split is not None)


def _column_of_files(cells: _Cells, notes: list[str]) -> str:
    found = [name for name in cells.heads if name and all(has_image_name(cell) for _, cell in cells.of(name))]
    if len(found) != 1:
        raise UserError(
            f"{cells.file} has the columns {listing(cells.heads)}, and none is known to hold images: call it image, or "
            "name it with --data.image_column"
        )
    notes.append(f"{cells.file}: its column {found[0]} is taken for the images")
    return found[0]


def _of_flags(cells: _Cells, names: Sequence[str]) -> list[tuple[str, ...]]:
    if not names:
        raise UserError(f"{cells.file} has no column beside its images: {EXPECTED}")
    labels: list[list[str]] = [[] for _ in cells.rows]
    for name in names:
        for held, (line, cell) in zip(labels, cells.of(name), strict=True):
            if cell.lower() not in FLAGS:
                raise UserError(
                    f"{cells.file}, line {line}: its {name} is {cell!r}: {EXPECTED} and no other ones; "
                    "--data.label_column names the column of labels"
                )
            held += [name] * FLAGS[cell.lower()]
    return [tuple(held) for held in labels]


def _of_cells(cells: _Cells, column: str, asked: str | None, notes: list[str]) -> list[tuple[str, ...]]:
    values = cells.of(column)
    mark = _separator(cells.file, values, notes) if asked is None else None if asked == "none" else asked
    labels = []
    for line, cell in values:
        if cell.startswith(("[", "{")):
            raise UserError(f"{cells.file}, line {line}: its {column} is {cell[:40]!r}: expected labels as cat|dog")
        parts = [part.strip() for part in cell.split(mark)] if mark else [cell]
        labels.append(tuple(dict.fromkeys(part for part in parts if part)))
    if quoted := next((cell for _, cell in values if '"' in cell), None):
        notes.append(f"{cells.file}: labels with quotation marks, as {quoted!r}, are taken as they are")
    return labels


def _separator(file: Path, values: Sequence[tuple[int, str]], notes: list[str]) -> str | None:
    """What is certain to stand between labels. Raises UserError for what may."""
    found = [mark for mark in CERTAIN if any(mark in cell for _, cell in values)]
    comma = next(((line, cell) for line, cell in values if "," in cell), None)
    if len(found) > 1 or comma:
        line, cell = comma or next((line, cell) for line, cell in values if found[1] in cell)
        raise UserError(
            f"{file}, line {line}: {cell!r} may be one label or several: --data.separator , (or what else stands "
            "between labels), or --data.separator none"
        )
    if found:
        notes.append(f"{file}: labels are separated by {found[0]}")
    elif blank := next((cell for _, cell in values if re.search(r"\S\s+\S", cell)), None):
        notes.append(f'{file}: a label with blanks, as {blank!r}, is one label; --data.separator " " splits them')
    return found[0] if found else None
