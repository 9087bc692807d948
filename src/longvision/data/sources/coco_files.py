"""COCO's JSON files: where they and their images lie, and whether their entries are what they must be."""

import json
import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longvision.data.io.coco_masks import is_numbers
from longvision.data.io.listing import list_files
from longvision.data.io.text import read_text
from longvision.data.problems import refuse
from longvision.errors import MissingFileError, UserError

Json = dict[str, Any]
Kind = tuple[Callable[[Any], bool], str]  # whether a value is of it, and its name in a message

ID: Kind = (lambda value: isinstance(value, str) or (is_numbers([value]) and value == value), "a number or text")
TEXT: Kind = (lambda value: isinstance(value, str), "text")
SIDE: Kind = (lambda value: type(value) is int and value > 0, "a whole number of pixels, 1 or more")
BOX: Kind = (lambda value: is_numbers(value, 4), "four numbers: x, y, width, height")
CROWD: Kind = (lambda value: value in (0, 1, None) and not isinstance(value, float), "0 or 1")
SINGULAR = {"images": "image", "annotations": "annotation"}
OPTIONAL: dict[str, Kind] = {
    "iscrowd": CROWD,
    "id": (lambda value: value is None or ID[0](value), "a number or text"),  # of annotations
}
NEEDED: dict[str, dict[str, Kind]] = {
    "images": {"id": ID, "file_name": TEXT, "height": SIDE, "width": SIDE},
    "annotations": {"image_id": ID, "category_id": ID, "bbox": BOX},
    "categories": {"id": ID, "name": TEXT},
}


def load_json(file: Path, notes: list[str]) -> Json:
    """An annotation file with at least one image, annotation and category, each with what is NEEDED of it.

    Annotations without an id are called by their place. `notes` as of `read_text`.
    """
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist: give a JSON file of COCO's layout")
    try:
        content = json.loads(read_text(file, notes))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
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
    for place, annotation in enumerate(content["annotations"]):
        if annotation.get("id") is None:
            annotation["id"] = f"at place {place}"
    return content


def _problem(entry: Any, keys: dict[str, Kind]) -> str | None:
    """What an entry lacks, or has of a kind that it cannot have."""
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else list(keys)
    if missing:
        return f"no {', '.join(missing)}: add what is missing"
    for key, (fits, expected) in {**OPTIONAL, **keys}.items():
        if key in entry and not fits(entry[key]):
            return f"{key} {json.dumps(entry[key]):.60}: expected {expected}"
    return None


def check_ids(content: Json, file: Path) -> None:
    """Each id is one image's or one annotation's, each name one image's, and each annotation one of these images'."""
    for word in ("images", "annotations"):
        count = Counter(entry["id"] for entry in content[word])
        if word == "images":
            strange = [repr(number) for number in count if not isinstance(number, int)]
            refuse(strange, f"image ids in {file} are not whole numbers", "number the images")
        twice = [str(number) for number, times in count.items() if times > 1]
        refuse(twice, f"{SINGULAR[word]} ids in {file} occur more than once", f"give each {SINGULAR[word]} its own")
    names = Counter(plain_name(image) for image in content["images"])
    twice = [name for name, times in names.items() if times > 1]
    refuse(twice, f"file names in {file} occur more than once", "list each image once, with all its annotations")
    known = {image["id"] for image in content["images"]}
    orphans = [words_of(one) for one in content["annotations"] if one["image_id"] not in known]
    refuse(orphans, f"annotations in {file} belong to images that it does not list", "add the images, or remove them")


def words_of(annotation: Json) -> str:
    return f"annotation {annotation['id']} of image {annotation['image_id']}"


def plain_name(image: Json) -> str:
    """An image's file name with the folders that are in it, written as this system writes them."""
    return posixpath.normpath(image["file_name"].replace("\\", "/"))


def find_images(images: list[Json], folder: Path) -> tuple[list[str], str]:
    """The file of each image, and how they were found, where that is not as the names say it.

    Some programs write names with folders that are elsewhere: what finds the first image is taken for all.
    """
    ways = (
        ("", lambda image: folder / image["file_name"]),
        ("with \\ as folders", lambda image: folder / plain_name(image)),
        (f"beside {folder.name}", lambda image: folder.parent / plain_name(image)),
        ("without their folders", lambda image: folder / posixpath.basename(plain_name(image))),
    )
    first = next((way for way in ways if _is_file(way[1](images[0]))), ways[0])
    files = [str(first[1](image)) for image in images]
    if len(set(files)) < len(files):
        twice = [file for file, times in Counter(files).items() if times > 1]
        refuse(twice, "files are the images of several names", "put the images into the folders that their names say")
    return files, first[0]


def in_other_capitals(files: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Each file as it is spelled below the folder, where only capitals are others and one file alone is meant; and
    names of those that are. Systems that know no capitals hide the difference."""
    there = {os.path.normpath(file) for file in list_files(folder).files}
    missing = {file for file in files if os.path.normpath(file) not in there and not _is_file(Path(file))}
    if not missing:
        return files, []
    spelled: dict[str, list[str]] = defaultdict(list)
    for file in there - set(map(os.path.normpath, files)):
        spelled[file.casefold()].append(file)
    found = {file: spelled[os.path.normpath(file).casefold()] for file in missing}
    meant = {file: several[0] for file, several in found.items() if len(several) == 1}
    if len(set(meant.values())) < len(meant):  # two names of one file
        return files, []
    return [meant.get(file, file) for file in files], sorted(os.path.basename(file) for file in meant)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
