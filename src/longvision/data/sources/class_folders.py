"""The classes of a folder source: their names as text, and what may lie in their folders."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath

from longvision.data.io.listing import folders_in
from longvision.data.problems import counted, listing
from longvision.data.sources.base import look_alike
from longvision.data.splits import read_name, split_inside
from longvision.errors import UserError
from longvision.text import as_text


def train_classes(folder: Path, notes: list[str]) -> list[str]:
    """The sorted names of the class folders; notes what looks alike. Raises UserError for fewer than two."""
    names = class_folders(folder)
    if not names:
        raise UserError(f"{folder} has no class folders: expected one folder of images per class in it")
    if len(names) == 1:
        (name,) = names.values()
        below = folders_in(folder / name)
        hint = f"; or give {folder / name}, which has the folders {listing(below)}" if len(below) > 1 else ""
        raise UserError(
            f"{folder} has only the class {next(iter(names))}: two classes are needed, "
            f"each a folder of its own images{hint}"
        )
    notes += look_alike(names, folder)
    return sorted(names)


def class_folders(folder: Path) -> dict[str, str]:
    """The class's name as text -> the folder's name. Raises UserError for two folders whose names are the same text."""
    same: dict[str, list[str]] = defaultdict(list)
    for name in folders_in(folder):
        same[as_text(name)].append(name)
    for text, names in same.items():
        if len(names) > 1:
            raise UserError(
                f"{folder} has {len(names)} folders called {text}, spelled with different Unicode characters "
                f"({' and '.join(map(ascii, names))}): they are one class, join them"
            )
    return {text: names[0] for text, names in sorted(same.items())}


def check_nested(folder: Path, files: Iterable[str], notes: list[str]) -> list[str]:
    """-> the folders inside a class folder that hold images, which `notes` tells. Raises UserError where these are
    splits."""
    nested: dict[str, int] = defaultdict(int)
    own = os.fspath(folder)
    for file in files:
        if (deep := os.path.dirname(file)) != own:
            nested[os.path.relpath(deep, own)] += 1
    if (split := split_inside(nested)) is not None:
        raise UserError(
            f"{folder / split} is called as a split and lies inside the class folder {folder.name}, so that its images "
            f"would count as {folder.name}: expected DIR/train/CLASS, DIR/val/CLASS, DIR/test/CLASS; move or rename it"
        )
    if nested:
        count = counted(sum(nested.values()), "file")
        notes.append(f"{count} in folders inside {folder} ({listing(sorted(nested))}): of the class {folder.name}")
    return sorted(nested)


def refuse_splits(root: Path, nested: Mapping[str, Sequence[str]]) -> None:
    """`nested` are the folders inside each folder of `root`. Raises UserError where two have folders of the same name:
    those are the classes, rather than the outer ones, which are splits by other names (tr and te) or parts of a set."""
    outer: dict[str, list[str]] = defaultdict(list)
    for name, folders in nested.items():
        for first in sorted({PurePath(folder).parts[0] for folder in folders}):
            if not read_name(first).kinds:  # cat/images, dog/images
                outer[first].append(name)
    same = {first: names for first, names in outer.items() if len(names) > 1}
    if same:
        names = sorted({name for several in same.values() for name in several})
        raise UserError(
            f"{root} has the folders {listing(names)}, which hold the same folders ({listing(list(same))}): splits of "
            f"one set, or classes? Call splits train, val and test, and join parts of one; if they are classes, put "
            f"all class folders into {root / 'train'}"
        )
