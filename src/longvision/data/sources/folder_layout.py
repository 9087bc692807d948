"""Which folders of a classification set are splits and which are classes; refused where that cannot be told."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longvision.data.io.listing import files_in, folders_in
from longvision.data.leftovers import unused
from longvision.data.problems import listing, require_folder
from longvision.data.splits import SAID, TRAINS, alike, choose, read_name
from longvision.errors import UserError
from longvision.text import as_text
from longvision.types import Split


@dataclass(frozen=True)
class Layout:
    """The folder of each split, whose folders are the classes, and what must be told; `doubtful` where no name says
    that they are classes, and no splits."""

    splits: dict[Split, Path]
    notes: list[str] = field(default_factory=list)
    doubtful: bool = False


def find_layout(root: Path) -> Layout:
    """A split holds class folders, a class holds images: a name alone does not make a split. Raises UserError."""
    require_folder(root, "give a folder with one folder of images per class")
    names = folders_in(root)
    said = [name for name in names if read_name(name).is_split]
    deep = [name for name in said if folders_in(root / name)]
    if not _trains(deep):
        deep += alike(name for name in names if name not in said and read_name(name).rest and _is_deep(root / name))
    if not _trains(deep):
        return _classes_alone(root, names, said)
    without_classes = [name for name in said if name not in deep and read_name(name).reading == "val"]
    chosen = choose([*deep, *without_classes], str(root))
    splits = {split: _inner(root / name) for split, name in chosen.names.items()}
    left = [name for name in names if name not in chosen.names.values()]
    notes = [*chosen.notes, *_test_without_labels(root, left, splits), *_same_folder(splits)]
    notes += unused(root, files_in(root), left)
    for folder in splits.values():
        notes += unused(folder, files_in(folder))
    return Layout(splits, notes)


def find_any_layout(root: Path, classes: Sequence[str]) -> Layout:
    """For evaluation: the splits that there are, or else the class folders of `root` as "train". Raises UserError."""
    require_folder(root, "give a folder with one folder of images per class")
    names = folders_in(root)
    said = [name for name in names if read_name(name).is_split and as_text(name) not in classes]
    deep = [name for name in said if folders_in(root / name)]
    if not deep:
        return Layout({"train": root}, unused(root, files_in(root)))
    chosen = choose(deep, str(root))
    left = [name for name in names if name not in chosen.names.values()]
    notes = [*chosen.notes, *unused(root, files_in(root), left)]
    return Layout({split: _inner(root / name) for split, name in chosen.names.items()}, notes)


def _trains(names: Sequence[str]) -> bool:
    return any(read_name(name).reading in TRAINS for name in names)


def _is_deep(folder: Path) -> bool:
    return read_name(folder.name).reading is not None and bool(folders_in(folder))


def _inner(folder: Path) -> Path:
    """Past a single folder that is called as the split again, as archives unpack: training_set/training_set/cats."""
    below = folders_in(folder)
    again = len(below) == 1 and read_name(below[0]).reading == read_name(folder.name).reading
    return folder / below[0] if again and folders_in(folder / below[0]) else folder


def _classes_alone(root: Path, names: Sequence[str], said: Sequence[str]) -> Layout:
    """The folders of `root` are the classes, and all images train but for those that are held out of them."""
    others = [name for name in names if name not in said]
    if said and not others:
        missing = "no class folders in train" if _trains(said) else "no training images"
        raise UserError(
            f"{root} has {listing(said)} but {missing}: expected one folder of images per class in {root / 'train'}"
        )
    doubtful = [name for name in said if read_name(name).reading != "train" or folders_in(root / name)]
    trains = read_name(os.path.basename(os.path.abspath(root))).reading == "train"
    if doubtful and not trains:
        raise UserError(
            f"{root} has {listing(doubtful)} beside the folders {listing(others)}: a class, or images that must not "
            f"train? If it is a class, put all class folders into {root / 'train'}; if not, move it away"
        )
    like_splits = [name for name in names if read_name(name).reading]
    notes = [f"{root}: {listing(like_splits)} taken as a class, no split, as it holds images itself"] * bool(
        like_splits
    )
    return Layout({"train": root}, [*notes, *unused(root, files_in(root))], doubtful=not trains)


def _test_without_labels(root: Path, left: Sequence[str], splits: dict[Split, Path]) -> list[str]:
    names = [name for name in left if read_name(name).is_split and read_name(name).reading == "test"]
    if "test" in splits:
        return []
    return [f"{root / name} has no class folders: its images have no labels" for name in names]


def _same_folder(splits: dict[Split, Path]) -> list[str]:
    """Links from one split to another are made to please a program, and then forgotten."""
    pairs = [(one, other) for one in splits for other in splits if list(SAID).index(one) < list(SAID).index(other)]
    return [
        f"{splits[other]} and {splits[one]} are the same folder: the same images are in two splits"
        for one, other in pairs
        if os.path.samefile(splits[one], splits[other])
    ]
