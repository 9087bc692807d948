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
INTEGER = re.compile(r"[+-]?\d+")
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
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: give a file of class names") from error
    if path.suffix.lower() in DOCUMENTS:
        return _from_document(path, text)
    return _class_file(path, [_from_line(path, line, number) for number, line in _lines(text)])


def find_classes(file: str | Path) -> Path:
    """The file itself, or the packaged one of that name, with or without .json."""
    for path in (Path(file), FOLDER / file, FOLDER / f"{file}.json"):
        if path.is_file():
            return path
    packaged = ", ".join(sorted(path.stem for path in FOLDER.glob("*.json")))
    raise MissingFileError(f"{file} is no file: give a file of class names, or one of {packaged}")


def _lines(text: str) -> list[tuple[int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _from_line(path: Path, line: str, number: int) -> Entry:
    words = line.split()
    first, last = words[:3], words[-3:]
    if len(first) == 3 and all(map(INTEGER.fullmatch, first)):
        name, colour = words[3:], first
    elif len(words) > 3 and all(map(INTEGER.fullmatch, last)):
        name, colour = words[:-3], last
    else:
        return line, None, number
    if not name:
        raise UserError(f'{path}, line {number}: "{line}" has no name: expected "name", "name r g b" or "r g b name"')
    return " ".join(name), _colour(path, colour, number), number


def _from_document(path: Path, text: str) -> ClassFile:
    """Nodes instead of values: they know their lines, and a class may be called on, null or 7."""
    # JSON may be indented with tabs, which YAML forbids; inside its strings there can be none
    text = text.expandtabs() if path.suffix.lower() == ".json" else text
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: {error.problem or error.context}: expected JSON or YAML") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is neither JSON nor YAML: {str(error).splitlines()[0]}") from error
    fields = {key.value: value for key, value in root.value} if isinstance(root, MappingNode) else {}
    if not isinstance(fields.get("classes"), SequenceNode | MappingNode):
        return _class_file(path, _entries(path, root))
    if unknown := sorted(set(fields) - set(KEYS)):
        raise UserError(f"{path} has {', '.join(unknown)} beside the classes: expected {', '.join(KEYS)}")
    ignore = _ignored(path, fields["ignore"]) if "ignore" in fields else ()
    binary = "binary" in fields and _truth(path, fields["binary"])
    return _class_file(path, _entries(path, fields["classes"]), ignore, binary)


def _entries(path: Path, node: Node | None) -> list[Entry]:
    if isinstance(node, MappingNode):
        return [(_name(path, key), _colour_node(path, value), _line(key)) for key, value in node.value]
    if isinstance(node, SequenceNode):
        return [_entry(path, item) for item in node.value]
    raise UserError(f'{path} holds no classes: expected {{"classes": [...]}} or a list of names')


def _entry(path: Path, node: Node) -> Entry:
    if not isinstance(node, MappingNode):
        return _name(path, node), None, _line(node)
    fields = {key.value: value for key, value in node.value}
    if "name" not in fields or set(fields) - {"name", "color", "colour"}:
        raise UserError(f"{path}, line {_line(node)}: a class has {', '.join(fields)}: expected name and color")
    colour = fields.get("color", fields.get("colour"))
    return _name(path, fields["name"]), colour and _colour_node(path, colour), _line(node)


def _name(path: Path, node: Node) -> str:
    if not isinstance(node, ScalarNode) or not node.value.strip():
        raise UserError(f"{path}, line {_line(node)}: expected the name of a class")
    return node.value.strip()


def _colour_node(path: Path, node: Node) -> Colour | None:
    if isinstance(node, ScalarNode) and node.tag.endswith(":null"):
        return None
    items = node.value if isinstance(node, SequenceNode) else [node]
    return _colour(path, [str(item.value) for item in items], _line(node))


def _colour(path: Path, words: list[str], line: int) -> Colour:
    if len(words) == 3 and all(map(INTEGER.fullmatch, words)):
        red, green, blue = map(int, words)
        if min(red, green, blue) >= 0 and max(red, green, blue) <= 255:
            return red, green, blue
    raise UserError(f"{path}, line {line}: the colour {' '.join(words)} is not three numbers from 0 to 255")


def _ignored(path: Path, node: Node) -> tuple[int | Colour, ...]:
    """A value, or a list of values and of colours."""
    if isinstance(node, ScalarNode) and node.tag.endswith(":null"):
        return ()
    values: list[int | Colour] = []
    for item in node.value if isinstance(node, SequenceNode) else [node]:
        if isinstance(item, SequenceNode):
            values.append(_colour(path, [str(part.value) for part in item.value], _line(item)))
        elif isinstance(item, ScalarNode) and item.value.isdecimal() and int(item.value) <= 65535:
            values.append(int(item.value))
        else:
            raise UserError(
                f"{path}, line {_line(item)}: ignore is a value of masks (0 to 65535), or a list of values and "
                "of colours such as [[0, 0, 0]]"
            )
    return tuple(values)


def _truth(path: Path, node: Node) -> bool:
    if node.value not in ("true", "false"):
        raise UserError(f"{path}, line {_line(node)}: binary is true or false")
    return bool(node.value == "true")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _class_file(
    path: Path, entries: list[Entry], ignore: tuple[int | Colour, ...] = (), binary: bool = False
) -> ClassFile:
    if not 2 <= len(entries) <= IGNORE:
        raise UserError(f"{path} has {len(entries)} classes: expected 2 to {IGNORE}")
    if binary and len(entries) != 2:
        raise UserError(f"{path} has {len(entries)} classes: binary masks show 2")
    lines: dict[str | Colour, int] = {}
    for name, colour, line in entries:
        for word, thing in (("name", name), ("colour", colour)):
            if thing is not None and thing in lines:
                raise UserError(f"{path}, line {line}: the {word} {thing} is line {lines[thing]}'s too")
            if thing is not None:
                lines[thing] = line
    chosen = iter(_other_colours(len(entries), {colour for _, colour, _ in entries if colour}))
    palette = [colour or next(chosen) for _, colour, _ in entries]
    coloured = all(colour for _, colour, _ in entries)
    return ClassFile([name for name, _, _ in entries], palette, coloured, ignore, binary)


def _other_colours(count: int, taken: set[Colour]) -> list[Colour]:
    """At least `count` colours that are not taken."""
    return [colour for colour in spread_colours(count + len(taken)) if colour not in taken]
