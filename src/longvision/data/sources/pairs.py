"""Where images and their masks lie: the usual layouts of folders, and CHASEDB1's files."""

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from longvision.data.io.listing import ending, has_image_name, list_files
from longvision.data.leftovers import cannot_be_listed, no_images
from longvision.data.problems import counted, listing, require_folder
from longvision.data.sources.base import hold_out
from longvision.data.sources.mask_lists import LISTS, by_lists
from longvision.data.sources.mask_places import LAYOUTS, find_places
from longvision.data.splits import read_name, split_inside
from longvision.errors import UserError
from longvision.text import as_text
from longvision.types import Split

CHASE = re.compile(r"Image_(\d\d)[LR]\.jpg")  # the number is the patient's
CHASE_TRAIN = 9  # patients, of 14; the tenth validates. Publications train on ten: the first 20 of 28 images
JOINTS = "_-. "  # a mask's name is its image's, or goes on after it with one of these

# an image file and its mask's: text, not Path, as a million of them lie in every worker's memory
ImageAndMask = tuple[str, str | None]


def find_pairs(
    root: Path, seed: int | None, notes: list[str], classes_file: str | None = None
) -> tuple[dict[Split, list[ImageAndMask]], bool]:
    """The images of each split, each with its mask, in the order of their names, and whether those that validate are a
    tenth of those that train, drawn with the seed. Without a seed none is drawn, and none need train. `notes` gets what
    is not used.
    """
    require_folder(root, f"give a folder of images and masks ({LAYOUTS})")
    if is_chase(root):
        return _chase_pairs(root), False
    places = find_places(root, notes, seed is not None, classes_file)
    pairs = {split: match_masks(*folders, notes) for split, folders in places.items()}
    if list(places) == ["train"] and (root / LISTS).is_dir():
        folder = places["train"][0]
        pairs = by_lists(root, {_key(pair[0], folder): pair for pair in pairs["train"]}, notes)
        if seed is not None and "train" not in pairs:
            raise UserError(f"{root / LISTS} has no list of training images: expected train.txt")
    draws = "val" not in pairs and seed is not None
    if draws:
        if len(pairs["train"]) < 2:
            raise UserError(f"{root} has a single image: add images, or some that validate")
        train, val = hold_out(np.zeros(len(pairs["train"]), np.int64), seed or 0)
        pairs["train"], pairs["val"] = ([pairs["train"][row] for row in rows] for rows in (train, val))
    return pairs, draws


def match_masks(images: Path, masks: Path, notes: list[str]) -> list[ImageAndMask]:
    """Every image below `images` with the one below `masks` whose name is, or begins with, its own."""
    keys = _keyed(images, notes)
    if not keys:
        raise UserError(f"{images} has no images: add some, or remove it")
    _check_keys(keys, images)
    named = set(keys.values())
    same, longer = defaultdict(list), defaultdict(list)
    for mask, key in _keyed(masks, notes).items():
        if key in named:
            same[key].append(mask)
        else:
            longer[_owner(key, named)].append(mask)
    found = {key: same.get(key) or longer.get(key) or [] for key in named}
    if not any(found.values()):
        there = sorted({ending(file) or "no ending" for file in list_files(masks).files})
        raise UserError(
            f"none of the {len(keys)} images in {images} has a mask in {masks}, which has files of {listing(there)}: "
            "expected masks as PNG of equal names; annotations in JSON or XML are the detection sources', or to be "
            "exported as masks"
        )
    for key, several in found.items():
        if len(several) > 1:
            raise UserError(f"{images / key} has the masks {listing(several)}: keep one")
    beside = [mask for key in longer if key is None or key in same for mask in longer[key]]
    if beside:
        names = listing(sorted(os.path.relpath(mask, masks) for mask in beside))
        notes.append(f"{counted(len(beside), 'mask')} in {masks} without an image of that name ({names}): not used")
    return [(path, found[key][0] if found[key] else None) for path, key in keys.items()]


def _keyed(folder: Path, notes: list[str]) -> dict[str, str]:
    """The images below a folder -> their names without ending, from there."""
    found = list_files(folder)
    notes += cannot_be_listed(found.problems)
    others = [path for path in found.files if ending(path) and not has_image_name(path)]
    notes += no_images([os.path.relpath(path, folder) for path in others], folder)
    left = set(others)
    return {path: _key(path, folder) for path in found.files if path not in left}


def _key(path: str, folder: Path) -> str:
    return as_text(os.path.splitext(os.path.relpath(path, folder))[0])


def _check_keys(keys: dict[str, str], images: Path) -> None:
    """Raises UserError for two images that one mask would belong to, and for a split inside another."""
    owner: dict[str, str] = {}
    for path, key in keys.items():
        if owner.setdefault(key, path) != path:
            raise UserError(f"{owner[key]} and {path} have one name, so that a mask would belong to both: keep one")
    inside = split_inside({os.path.dirname(key) for key in owner}, read_name(images.name).reading or "train")
    if inside is not None:
        raise UserError(
            f"{images / inside} is called as a split and lies inside {images}, of which all images are used as one: "
            f"expected {LAYOUTS}; move or rename it"
        )


def _owner(key: str, named: set[str]) -> str | None:
    """The longest name that the mask's begins with."""
    cuts = [place for place, letter in enumerate(key) if letter in JOINTS]
    return next((key[:cut] for cut in reversed(cuts) if key[:cut] in named), None)


def is_chase(root: Path) -> bool:
    return any(CHASE.fullmatch(entry.name) for entry in root.iterdir())


def _chase_pairs(root: Path) -> dict[Split, list[ImageAndMask]]:
    """The usual 8 test images, and both eyes of the last training patient to validate.

    The first observer's masks are the truth, as is usual.
    """
    pairs: dict[Split, list[ImageAndMask]] = {"train": [], "val": [], "test": []}
    for image in sorted(root.iterdir()):
        if found := CHASE.fullmatch(image.name):
            mask = image.with_name(f"{image.stem}_1stHO.png")
            pairs[_chase_split(int(found[1]))].append((str(image), str(mask) if mask.exists() else None))
    if not all(pairs.values()):
        count = sum(map(len, pairs.values()))
        raise UserError(
            f"{root} has {count} of CHASEDB1's 28 images: expected patients 1 to {CHASE_TRAIN} to train, "
            f"{CHASE_TRAIN + 1} to validate and {CHASE_TRAIN + 2} to 14 to test"
        )
    return pairs


def _chase_split(patient: int) -> Split:
    if patient <= CHASE_TRAIN:
        return "train"
    return "val" if patient == CHASE_TRAIN + 1 else "test"
