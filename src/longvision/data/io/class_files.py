"""Names and colours of classes, from a JSON, YAML or plain text file."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from longvision.data.io.colours import spread_colours
from longvision.errors import MissingFileError, UserError
from longvision.types import IGNORE, Colour

FOLDER = Path(__file__).parents[2] / "recipes" / "classes"  # the files that come with the package
DOCUMENTS = (".json", ".yaml", ".yml")
NUMBER = r"[+-]?\d+"
RGB = rf"(?P<colour>{NUMBER}\s+{NUMBER}\s+{NUMBER})"
LINES = re.compile(rf"{RGB}(?:\s+(?P<name>.+))?"), re.compile(rf"(?P<name>.+?)\s+{RGB}")
KEYS = ("classes", "ignore", "binary")

Entry = tuple[str, Colour | None, int]  # a name, the colour where there is one, the line


@dataclass(frozen=True)
class ClassFile:
    """What a file says of classes and of the masks that show them. Class numbers follow its order, from 0.

    Args:
        classes: their names.
        palette: a colour for each; those that the file leaves out are chosen.
        coloured: whether the file gives every colour, so that masks in colour can be read by them.
        ignore: values (or colours) of a mask's pixels that neither train nor count, as the mask file has them.
        binary: whether masks show class 1 by any value from 128, class 0 by any below.
    """

    classes: list[str]
    palette: list[Colour]
    coloured: bool = False
    ignore: tuple[int | Colour, ...] = ()
    binary: bool = False


def read_classes(file: str | Path) -> ClassFile:
    """The classes in a file: a path, or the name of one that comes with the package, such as camvid.

    JSON and YAML hold {"classes": [{"name": "road", "color": [128, 64, 128]}, ...]} (colours may be left out), with
    "ignore": 255 and "binary": true where they apply, or {"road": [128, 64, 128], ...}. Any other file holds a class a
    line: "road", "road 128 64 128" or "128 64 128 road". Empty lines and lines that begin with # do not count.
    """
    path = find_classes(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _from_document(path, text) if path.suffix.lower() in DOCUMENTS else _class_file(_from_lines(text))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: give a file of class names") from error
    except _Mistake as error:
        where = f"{path}, line {error.line}:" if error.line else str(path)
        raise UserError(f"{where} {error}") from error


def find_classes(file: str | Path) -> Path:
    """The file itself, or the packaged one of that name, with or without .json."""
    for path in (Path(file), FOLDER / file, FOLDER / f"{file}.json"):
        if path.is_file():
            return path
    packaged = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
    raise MissingFileError(f"{file} is no file: give a file of class names, or one of {packaged}")


class _Mistake(Exception):
    """In a line, or in the file as a whole, whose name whoever reads it puts before."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


def _from_lines(text: str) -> list[Entry]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [_from_line(line, number) for number, line in lines if line and not line.startswith("#")]


def _from_line(line: str, number: int) -> Entry:
    found = next(filter(None, (form.fullmatch(line) for form in LINES)), None)
    if found is None:
        return line, None, number
    if not found["name"]:
        raise _Mistake(f'"{line}" has no name: expected "name", "name r g b" or "r g b name"', number)
    return " ".join(found["name"].split()), _colour(found["colour"].split(), number), number


def _from_document(path: Path, text: str) -> ClassFile:
    """Nodes instead of values: they know their lines, and a class may be called on, null or 7."""
    # JSON may be indented with tabs, which YAML forbids; inside its strings there can be none
    text = text.expandtabs() if path.suffix.lower() == ".json" else text
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _Mistake(
            f"{error.problem or error.context}: expected JSON or YAML", mark.line + 1 if mark else None
        ) from error
    except yaml.YAMLError as error:
        raise _Mistake(f"is neither JSON nor YAML: {str(error).splitlines()[0]}") from error
    fields = _fields(root)
    if not isinstance(fields.get("classes"), SequenceNode | MappingNode):
        return _class_file(_entries(root))
    if unknown := sorted(set(fields) - set(KEYS)):
        raise _Mistake(f"has {', '.join(unknown)} beside the classes: expected {', '.join(KEYS)}")
    ignore = tuple(_ignored(node) for node in _items(fields.get("ignore")))
    return _class_file(_entries(fields["classes"]), ignore, "binary" in fields and _truth(fields["binary"]))


def _fields(node: Node | None) -> dict[str, Node]:
    return {str(key.value): value for key, value in node.value} if isinstance(node, MappingNode) else {}


def _items(node: Node | None) -> list[Node]:
    """Of a list; what is none is the only one."""
    if node is None or _is_null(node):
        return []
    return node.value if isinstance(node, SequenceNode) else [node]


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag.endswith(":null")


def _entries(node: Node | None) -> list[Entry]:
    if isinstance(node, MappingNode):
        return [_entry(name, colour) for name, colour in node.value]
    if not isinstance(node, SequenceNode):
        raise _Mistake('holds no classes: expected {"classes": [...]} or a list of names')
    entries = []
    for item in node.value:
        fields = _fields(item)
        if fields and ("name" not in fields or set(fields) - {"name", "color", "colour"}):
            raise _Mistake(f"a class has {', '.join(fields)}: expected name and color", _line(item))
        entries.append(_entry(fields.get("name", item), fields.get("color", fields.get("colour"))))
    return entries


def _entry(name: Node, colour: Node | None) -> Entry:
    if not isinstance(name, ScalarNode) or not name.value.strip():
        raise _Mistake("expected the name of a class", _line(name))
    rgb = None if colour is None or _is_null(colour) else _colour(_words(colour), _line(colour))
    return name.value.strip(), rgb, _line(name)


def _words(node: Node) -> list[str]:
    return [str(item.value) for item in _items(node)]


def _colour(words: list[str], line: int) -> Colour:
    if len(words) == 3 and all(re.fullmatch(NUMBER, word) and 0 <= int(word) <= 255 for word in words):
        red, green, blue = map(int, words)
        return red, green, blue
    raise _Mistake(f"the colour {' '.join(words)} is not three numbers from 0 to 255", line)


def _ignored(node: Node) -> int | Colour:
    if isinstance(node, SequenceNode):
        return _colour(_words(node), _line(node))
    if isinstance(node, ScalarNode) and node.value.isdecimal() and int(node.value) <= 65535:
        return int(node.value)
    raise _Mistake(
        "ignore is a value of masks (0 to 65535), or a list of values and of colours such as [[0, 0, 0]]", _line(node)
    )


def _truth(node: Node) -> bool:
    if node.value not in ("true", "false"):
        raise _Mistake("binary is true or false", _line(node))
    return bool(node.value == "true")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _class_file(entries: list[Entry], ignore: tuple[int | Colour, ...] = (), binary: bool = False) -> ClassFile:
    if not 2 <= len(entries) <= IGNORE:
        raise _Mistake(f"has {len(entries)} classes: expected 2 to {IGNORE}")
    if binary and len(entries) != 2:
        raise _Mistake(f"has {len(entries)} classes: binary masks show 2")
    lines: dict[str | Colour, int] = {}
    for name, colour, line in entries:
        for word, thing in (("name", name), ("colour", colour)):
            if thing in lines:
                raise _Mistake(f"the {word} {thing} is line {lines[thing]}'s too", line)
            if thing is not None:
                lines[thing] = line
    given = {colour for _, colour, _ in entries if colour}
    others = (colour for colour in spread_colours(len(entries) + len(given)) if colour not in given)
    palette = [colour or next(others) for _, colour, _ in entries]
    coloured = all(colour for _, colour, _ in entries)
    return ClassFile([name for name, _, _ in entries], palette, coloured, ignore, binary)
