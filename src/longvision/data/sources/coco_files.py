"""COCO's JSON files: where they and their images lie, and whether their entries are what they must be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longvision.data.io.coco_masks import is_numbers
from longvision.errors import MissingFileError, UserError

Json = dict[str, Any]
Kind = tuple[Callable[[Any], bool], str]  # whether a value is of it, and its name in a message

ID: Kind = (lambda value: isinstance(value, int | float | str), "a number or text")
TEXT: Kind = (lambda value: isinstance(value, str), "text")
SIDE: Kind = (lambda value: type(value) is int and value > 0, "a whole number of pixels, 1 or more")
BOX: Kind = (lambda value: is_numbers(value, 4), "four numbers: x, y, width, height")
NEEDED: dict[str, dict[str, Kind]] = {
    "images": {"id": ID, "file_name": TEXT, "height": SIDE, "width": SIDE},
    "annotations": {"id": ID, "image_id": ID, "category_id": ID, "bbox": BOX},
    "categories": {"id": ID, "name": TEXT},
}


def load_json(file: Path) -> Json:
    """An annotation file with at least one image, annotation and category, each with what is NEEDED of it."""
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist: give a JSON file of COCO's layout")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): expected images, annotations and categories") from error
    for word, keys in NEEDED.items():
        entries = content.get(word) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{file} has no list of {word}: expected images, annotations and categories as COCO's")
        if not entries:
            raise UserError(f"{file} has no {word}: expected at least one")
        for place, entry in enumerate(entries):
            if problem := _problem(entry, keys):
                raise UserError(f"{file}: number {place} of its {word} has {problem}")
    return content


def _problem(entry: Any, keys: dict[str, Kind]) -> str | None:
    """What an entry lacks, or has of a kind that it cannot have."""
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else list(keys)
    if missing:
        return f"no {', '.join(missing)}: add what is missing"
    for key, (fits, expected) in keys.items():
        if not fits(entry[key]):
            return f"{key} {json.dumps(entry[key]):.60}: expected {expected}"
    return None
