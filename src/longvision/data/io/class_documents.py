"""Class files in JSON or YAML, in the forms that annotation tools write. Other files of theirs are refused by name."""

import json
import re
from dataclasses import dataclass

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from longvision.data.io.class_entries import Entry, Mistake
from longvision.data.io.colours import colour_of_int, read_colour
from longvision.types import Colour

SLOW = 1 << 17  # characters, which YAML reads in about a second
KEYS = ("classes", "ignore", "binary")
# a key that holds classes -> who writes it, and what may stand beside it and says nothing of masks
LISTS: dict[str, tuple[str, set[str]]] = {
    "classes": ("Supervisely", {"classes", "tags", "projectType", "projectSettings", "description"}),
    "names": ("YOLO", {"path", "train", "val", "test", "nc", "roboflow", "download", "kpt_shape", "flip_idx", "names"}),
    "categories": (
        "COCO",
        {"info", "licenses", "images", "annotations", "videos", "categories", "type", "dataset", "segment_info"},
    ),
    "pathClasses": ("QuPath", {"pathClasses"}),
    "labels": ("Mapillary", {"labels", "version", "mapping", "folder_structure"}),
    "id2label": ("Hugging Face", {"id2label", "label2id", "num_labels"}),
    "label2id": ("Hugging Face", {"label2id", "num_labels"}),
}
# keys of what is no class file -> what it is
OTHERS = {
    "shapes": "Labelme's labels of one image",
    "_via_settings": "a project of VIA",
    "_via_img_metadata": "a project of VIA",
    "features": "GeoJSON",
    "geometry": "GeoJSON",
    "completions": "an export of Label Studio",
    "file_upload": "an export of Label Studio",
    "regions": "annotations of VIA",
    "tools": "an ontology of Labelbox",
    "filename": "annotations of images",
}
NAME = ("name", "title", "label", "class")
COLOUR = ("color", "colour", "rgb", "hex", "colorRGB", "color_rgb")
VALUE = ("id", "value", "index", "pixel_value", "class_id")
# of an item, what says nothing of its name, colour or value
BESIDE = {
    "supercategory", "isthing", "shape", "shapeType", "hotkey", "geometry_config", "description", "attributes",
    "type", "keypoints", "skeleton", "readable", "instances", "tool", "sub_attributes", "parent_id", "frequency",
    "synset", "synonyms", "def", "image_count", "instance_count",
}  # fmt: skip
# of these programs a class's id is that of a row in a database, and the background, which is no class, is black
UNNUMBERED = {"shape", "geometry_config", "hotkey", "attributes", "colorRGB", "tool"}


@dataclass(frozen=True)
class Document:
    """Entries, what is ignored, whether masks are of two values, and whether grey masks can be read by it."""

    entries: list[Entry]
    ignore: tuple[int | Colour, ...] = ()
    binary: bool = False
    numbered: bool = True


def read_document(text: str, is_json: bool) -> Document:
    """Nodes instead of values: they know their lines, and a class may be called on, null or 7. Raises Mistake."""
    if is_json:
        # it may be indented with tabs, which YAML forbids; inside its strings there can be none
        text = (text if len(text) < SLOW else _without_images(text)).expandtabs()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Mistake(
            f"{error.problem or error.context}: expected JSON or YAML", mark.line + 1 if mark else None
        ) from error
    except yaml.YAMLError as error:
        raise Mistake(f"is neither JSON nor YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise Mistake("is nested deeper than a list of classes can be") from error
    fields = _fields(root)
    if isinstance(fields.get("classes"), SequenceNode | MappingNode) and set(fields) <= set(KEYS):
        ignore = tuple(_ignored(node) for node in _items(fields.get("ignore")))
        binary = "binary" in fields and _truth(fields["binary"])
        return Document(_entries(fields["classes"]), ignore, binary, _is_numbered(fields["classes"]))
    for key, (tool, beside) in LISTS.items():
        if isinstance(fields.get(key), SequenceNode | MappingNode):
            if unknown := sorted(set(fields) - beside):
                expected = ", ".join(KEYS)
                raise Mistake(f"has {', '.join(unknown)} beside the {key}: expected {expected}, or {tool}'s keys")
            entries = _entries(fields[key])
            _check_count(fields.get("nc"), entries)
            return Document(entries, numbered=_is_numbered(fields[key]))
    return Document(_entries(root), numbered=_is_numbered(root))


def _without_images(text: str) -> str:
    """COCO's JSON without its lists of images and objects, which YAML would read for hours. Lines are other ones."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"is not JSON: {error}") from error
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in ("images", "annotations", "videos")}
    lean = json.dumps(content, ensure_ascii=False, indent=0)
    if len(lean) > SLOW:
        raise Mistake("holds more than a list of classes: give a file with the classes alone")
    return lean


def _fields(node: Node | None) -> dict[str, Node]:
    return {str(key.value): value for key, value in node.value} if isinstance(node, MappingNode) else {}


def _items(node: Node | None) -> list[Node]:
    """Of a list; what is none is the only one."""
    if node is None or _is_null(node):
        return []
    return node.value if isinstance(node, SequenceNode) else [node]


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag.endswith(":null")


def _is_numbered(node: Node | None) -> bool:
    items = _items(node)
    return not any(UNNUMBERED & set(_fields(item)) for item in items)


def _check_count(nc: Node | None, entries: list[Entry]) -> None:
    if isinstance(nc, ScalarNode) and nc.value != str(len(entries)):
        raise Mistake(f"has {len(entries)} names, and says nc: {nc.value}", _line(nc))


def _entries(node: Node | None) -> list[Entry]:
    _refuse_others(_fields(node))
    if isinstance(node, MappingNode):
        return _from_mapping(node)
    if not isinstance(node, SequenceNode):
        raise Mistake('holds no classes: expected {"classes": [...]} or a list of names')
    return [_from_item(item) for item in node.value]


def _refuse_others(fields: dict[str, Node]) -> None:
    for key, what in OTHERS.items():
        if key in fields:
            raise Mistake(f'is {what} (it has "{key}"), no list of classes: write their names, one a line')


def _from_mapping(node: MappingNode) -> list[Entry]:
    """Names with colours or numbers, or numbers with names."""
    for _, value in node.value:
        _refuse_others(_fields(value))
    scalars = all(isinstance(value, ScalarNode) and not _is_null(value) for _, value in node.value)
    numbers_first = bool(node.value) and all(map(_is_number, [key for key, _ in node.value]))
    if numbers_first and scalars:
        return [_entry(value, None, key) for key, value in node.value]
    if numbers_first and not all(_is_null(value) for _, value in node.value):
        raise Mistake("has numbers where names are expected", _line(node))
    if scalars and any(_is_number(value) for _, value in node.value):
        return [_entry(key, None, value) for key, value in node.value]
    return [_entry(key, value, None) for key, value in node.value]


def _is_number(node: Node) -> bool:
    return isinstance(node, ScalarNode) and re.fullmatch(r"\d{1,9}", node.value) is not None


def _from_item(item: Node) -> Entry:
    fields = _fields(item)
    if not fields:
        return _entry(item, None, None)
    _refuse_others(fields)
    keys = [_only(fields, any_of, item) for any_of in (NAME, COLOUR, VALUE)]
    unknown = set(fields) - BESIDE - {key for key in keys if key}
    if keys[0] is None or unknown:
        raise Mistake(f"a class has {', '.join(fields)}: expected name, color and id", _line(item))
    name, colour, value = (fields[key] if key else None for key in keys)
    if name is None or UNNUMBERED & set(fields):
        value = None
    return _entry(name or item, colour, value)


def _only(fields: dict[str, Node], any_of: tuple[str, ...], item: Node) -> str | None:
    found = [key for key in any_of if key in fields]
    if len(found) > 1:
        raise Mistake(f"a class has {' and '.join(found)}: keep one of them", _line(item))
    return found[0] if found else None


def _entry(name: Node, colour: Node | None, value: Node | None) -> Entry:
    if not isinstance(name, ScalarNode) or not name.value.strip():
        raise Mistake("expected the name of a class", _line(name))
    rgb = None if colour is None or _is_null(colour) else _colour(colour)
    if value is not None and not _is_number(value):
        raise Mistake(f"{_text(value)} is no value of a mask: expected a whole number, 0 or more", _line(value))
    number = None if value is None else int(str(value.value))
    return Entry(_whole(name.value.strip(), _line(name)), _line(name), rgb, number)


def _whole(name: str, line: int) -> str:
    """JSON writes what UTF-16 needs two numbers for as two; YAML reads these one by one."""
    try:
        return name.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise Mistake("a name has half a character", line) from error


def _text(node: Node) -> str:
    """What a node says, in short."""
    if isinstance(node, ScalarNode):
        return str(node.value)
    return " ".join(str(item.value) if isinstance(item, ScalarNode) else "…" for item in _items(node)[:4])


def _colour(node: Node) -> Colour:
    text = _text(node)
    colour = None if isinstance(node, MappingNode) else read_colour(text)
    if colour is None and isinstance(node, ScalarNode) and re.fullmatch(r"-?\d{5,10}", text):
        colour = colour_of_int(int(text))
    if colour is None:
        raise Mistake(f"the colour {text} is not three numbers from 0 to 255, or #rrggbb", _line(node))
    return colour


def _ignored(node: Node) -> int | Colour:
    if isinstance(node, SequenceNode):
        return _colour(node)
    if _is_number(node) and int(str(node.value)) <= 65535:
        return int(str(node.value))
    raise Mistake(
        "ignore is a value of masks (0 to 65535), or a list of values and of colours such as [[0, 0, 0]]", _line(node)
    )


def _truth(node: Node) -> bool:
    if node.value not in ("true", "false"):
        raise Mistake("binary is true or false", _line(node))
    return bool(node.value == "true")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
