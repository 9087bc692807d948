"""Class files of lines: names, numbers and colours in columns, with a heading or without, and CVAT's labelmap.txt."""

import csv
import re

from longvision.data.io.class_entries import Entry, Mistake
from longvision.data.io.colours import read_colour

NAMES = ("name", "class", "label", "class name", "classname", "label name", "labelname", "category", "title")
NUMBERS = ("id", "idx", "index", "value", "pixel value", "class id", "classid", "label id", "number", "code")
CHANNELS = (("r", "red"), ("g", "green"), ("b", "blue"))
COLOURS = ("color", "colour", "rgb", "hex", "color rgb", "colour rgb", "color hex", "colour hex")
CVAT_HEAD = re.compile(r"#\s*label\s*:\s*color", re.IGNORECASE)
CVAT_LINE = re.compile(r"(?P<name>[^:]+):(?P<colour>[^:]*):[^:]*:[^:]*")
HEX = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{8})\b")  # at the beginning of a line, where # is a comment else
NUMBER = r"[+-]?\d+"
RGB = rf"(?P<colour>{NUMBER}\s+{NUMBER}\s+{NUMBER})"
HEX_WORD = r"(?P<colour>#[0-9a-fA-F]{3,8})"
NUMBERED = re.compile(rf"(?P<value>{NUMBER})\s*(?:[:=.)\-]\s*|\s+)(?P<rest>.*\D.*)")
NAME_AND_NUMBER = re.compile(rf"(?P<rest>.*?\S)\s*[:=]\s*(?P<value>{NUMBER})")
OPACITY = re.compile(r"(?P<value>\d+)\s+(?P<name>\S.*?)\s+(?P<colour>\d+\s+\d+\s+\d+)\s+(?P<opacity>0|255)")
NUMBER_LAST = re.compile(rf"(?P<rest>.*?\D)\s*(?:[:=]\s*|\s+)(?P<value>{NUMBER})")
# "road: 128, 64, 128", as of YAML or of no program
COMMAS = re.compile(r"(?P<name>[^,;\t]+?)\s*[:=\s]\s*(?P<colour>[\[(]?\s*\d+\s*,\s*\d+\s*,\s*\d+\s*[\])]?)")
HALF_READ = re.compile(r"""[-*]\s.*|["',;:|=}\])>].*|.*["',;:|={\[(<]|.*(?:\s[-+.\d]+){2}""", re.DOTALL)
LINES = (
    re.compile(rf"{RGB}(?:\s+(?P<name>.+))?"),
    re.compile(rf"(?P<name>.+?)\s+{RGB}"),
    re.compile(rf"{HEX_WORD}(?:\s+(?P<name>.+))?"),
    re.compile(rf"(?P<name>.+?)\s+{HEX_WORD}"),
)
EXPECTED = (
    'expected a class a line, such as "road", "road 128 64 128", "128 64 128 road" or "7 road", or columns with a '
    'heading, such as "name,r,g,b"'
)
# i: a whole number, c: a colour in one word, t: other text -> which columns are what: n name, v value, rgb, c colour
FORMS = {
    "t": "n", "it": "vn", "ti": "nv", "tiii": "nrgb", "iiit": "rgbn", "itiii": "vnrgb",
    "itiiii": "vnrgba",  # FreeSurfer's and Slicer's tables: the last is the opacity
    "tc": "nc", "ct": "cn", "itc": "vnc", "ict": "vcn",
}  # fmt: skip

Line = tuple[int, str]


def read_table(text: str, notes: list[str]) -> list[Entry]:
    """Empty lines, and lines that begin with # and no colour, do not count. Raises Mistake."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    stated = [(number, line) for number, line in lines if not line.lstrip().startswith("#") or HEX.match(line.strip())]
    if (lines and CVAT_HEAD.match(lines[0][1])) or (stated and all(CVAT_LINE.fullmatch(line) for _, line in stated)):
        return [_cvat(line, number) for number, line in stated]
    if stated and all(found := [COMMAS.fullmatch(line.strip()) for _, line in stated]):
        return _whole(
            [
                _entry(match["name"], number, match["colour"], None)
                for (number, _), match in zip(stated, found, strict=True)
                if match
            ]
        )
    if separator := next(
        (mark for mark in "\t;|," if stated and all(mark in line.strip() for _, line in stated)), None
    ):
        try:
            rows = [(number, _cells(line, separator)) for number, line in stated]
        except csv.Error as error:
            raise Mistake(f"{error}: {EXPECTED}") from error
        if entries := _from_columns(rows, notes, separator):
            return entries
    elif stated and (heading := _heading(words := stated[0][1].split())) and len(heading) == len(words):
        return _from_heading(heading, [(number, line.split()) for number, line in stated], notes)
    return _from_lines([(number, line.strip()) for number, line in stated])


def _cvat(line: str, number: int) -> Entry:
    found = CVAT_LINE.fullmatch(line.strip())
    if found is None:
        raise Mistake(f'"{line.strip()}" is not as in CVAT\'s labelmap.txt: expected label:r,g,b:parts:actions', number)
    colour = _colour(found["colour"], number) if found["colour"].strip() else None
    return Entry(found["name"].strip(), number, colour)


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))]


def _from_columns(rows: list[tuple[int, list[str]]], notes: list[str], separator: str) -> list[Entry]:
    """[] where rows have no heading and are names that happen to hold the separator."""
    if heading := _heading(rows[0][1]):
        return _from_heading(heading, rows, notes)
    if separator == "\t":  # several are one, to make columns that one can see
        rows = [(number, [cell for cell in cells if cell]) for number, cells in rows]
    kinds = ["".join(map(_kind, cells)) for _, cells in rows]
    if not any(mark in kind for kind in kinds for mark in "ic"):
        return []
    entries = []
    for kind, (number, cells) in zip(kinds, rows, strict=True):
        form = FORMS.get(kind)
        if form is None or form != FORMS.get(kinds[0]):
            raise Mistake(f"{', '.join(cells)}: {EXPECTED}", number)
        columns = dict(zip(form, cells, strict=True))
        colour = columns.get("c") or " ".join(columns[channel] for channel in "rgb" if channel in columns)
        entries.append(_entry(columns["n"], number, colour, columns.get("v")))
    return entries


def _kind(cell: str) -> str:
    if re.fullmatch(NUMBER, cell):
        return "i"
    return "c" if read_colour(cell) else "t"


def _heading(cells: list[str]) -> dict[str, int] | None:
    """Which column is what, where the first row says it."""
    words = [re.sub(r"[\s_]+", " ", cell).strip().lower() for cell in cells]
    known = {"name": NAMES, "value": NUMBERS, "colour": COLOURS, **dict(zip("rgb", CHANNELS, strict=True))}
    found = {what: [at for at, word in enumerate(words) if word in any_of] for what, any_of in known.items()}
    if not found["name"] or len(words) < 2 or any(map(_is_number, cells)):
        return None
    if several := [what for what, places in found.items() if len(places) > 1]:
        raise Mistake(f"its heading {', '.join(cells)} has several columns for {several[0]}: keep one", 1)
    return {what: places[0] for what, places in found.items() if places}


def _is_number(cell: str) -> bool:
    return re.fullmatch(NUMBER, cell) is not None


def _from_heading(heading: dict[str, int], rows: list[tuple[int, list[str]]], notes: list[str]) -> list[Entry]:
    (_, titles), *rows = rows
    if not {"r", "g", "b"} <= set(heading) and {"r", "g", "b"} & set(heading):
        raise Mistake(f"its heading is {', '.join(titles)}: expected all of r, g and b, or none", 1)
    unread = [title for at, title in enumerate(titles) if at not in heading.values() and title]
    if unread:
        notes.append(f"columns that are not read: {', '.join(unread)}")
    entries = []
    for number, cells in rows:
        if len(cells) != len(titles):
            raise Mistake(f"has {len(cells)} columns, the heading {len(titles)}", number)
        columns = {what: cells[at] for what, at in heading.items()}
        colour = columns.get("colour") or " ".join(columns[channel] for channel in "rgb" if channel in columns)
        entries.append(_entry(columns["name"], number, colour, columns.get("value")))
    return entries


def _from_lines(lines: list[Line]) -> list[Entry]:
    """Columns between blanks, where a name may have blanks in it."""
    if len(lines) > 1 and lines[0][1].lower() in (*NAMES, "names", "classes", "labels"):
        raise Mistake(f'"{lines[0][1]}" may be a heading or a class: remove it, or call the class otherwise', 1)
    if len(lines) > 1 and all(found := [OPACITY.fullmatch(line) for _, line in lines]):
        return [
            _entry(match["name"], number, match["colour"], match["value"])
            for (number, _), match in zip(lines, found, strict=True)
            if match
        ]
    entries = [_from_line(line, number) for number, line in lines]
    return _whole(_numbered(entries, [line for _, line in lines]) or entries)


def _whole(entries: list[Entry]) -> list[Entry]:
    """Raises Mistake for a name that looks like a part of something that was not understood."""
    for entry in entries:
        if HALF_READ.fullmatch(entry.name) or "\t" in entry.name or (entry.colour and entry.name.isdecimal()):
            raise Mistake(f'"{entry.name}" cannot be the whole name of a class: {EXPECTED}', entry.line)
    return entries


def _numbered(entries: list[Entry], lines: list[str]) -> list[Entry]:
    """Where the names begin with numbers, these taken from them; [] where they are names. Raises Mistake for what can
    be read in several ways."""
    coloured = any(entry.colour for entry in entries)
    for pattern in (NUMBERED, NAME_AND_NUMBER, NUMBER_LAST):
        found = [pattern.fullmatch(entry.name) for entry in entries]
        rests = {match["rest"] for match in found if match}
        if len({match["value"] for match in found if match}) < 2 or len(rests) < 2:
            continue  # "class 1", "class 2" are names
        in_front = all(line.startswith(entry.name) for line, entry in zip(lines, entries, strict=True))
        five = coloured and (not in_front or all(map(NUMBER_LAST.fullmatch, rests)))
        five = five or all(re.match(r"[-+.\d]+\s", rest) for rest in rests)
        if all(found) and (pattern is NUMBER_LAST or five):
            raise Mistake(f'"{lines[0]}" can be read in several ways: {EXPECTED}', entries[0].line)
        if pattern is NUMBERED and not all(found):
            other = next(entry for entry, match in zip(entries, found, strict=True) if not match)
            raise Mistake(f'"{other.name}" has no number in front, as other lines have: {EXPECTED}', other.line)
        if all(found):
            return [
                _entry(match["rest"], entry.line, None, match["value"])._replace(colour=entry.colour)
                for entry, match in zip(entries, found, strict=True)
                if match
            ]
    return []


def _from_line(line: str, number: int) -> Entry:
    found = next(filter(None, (form.fullmatch(line) for form in LINES)), None)
    if found is None:
        return Entry(line, number)
    if not found["name"]:
        raise Mistake(f'"{line}" has no name: {EXPECTED}', number)
    return Entry(" ".join(found["name"].split()), number, _colour(found["colour"], number))


def _entry(name: str, number: int, colour: str | None, value: str | None) -> Entry:
    if not name:
        raise Mistake("has no name", number)
    if value is not None and not re.fullmatch(r"\d{1,9}", value):
        raise Mistake(f"{value!r} is no value of a mask: expected a whole number, 0 or more", number)
    return Entry(name, number, _colour(colour, number) if colour else None, None if value is None else int(value))


def _colour(text: str, number: int) -> tuple[int, int, int]:
    if colour := read_colour(text):
        return colour
    raise Mistake(f"the colour {text} is not three numbers from 0 to 255, or #rrggbb", number)
