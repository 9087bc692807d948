"""Where images and their masks lie: the usual layouts of folders, and CHASEDB1's files."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from longvision.data.io.listing import files_below
from longvision.data.problems import listing, require_folder
from longvision.data.sources.base import hold_out
from longvision.errors import UserError
from longvision.types import Split

SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
MASKS = ("masks", "annotations", "labels")
LAYOUTS = (
    "images/train with masks/train (or annotations/train), train/images with train/masks, train with trainannot, "
    "images with masks, or CHASEDB1's Image_01L.jpg with Image_01L_1stHO.png"
)
CHASE = re.compile(r"Image_(\d\d)[LR]\.jpg")  # the number is the patient's
CHASE_TRAIN = 9  # patients, of 14; the tenth validates. Publications train on ten: the first 20 of 28 images
JOINTS = "_-. "  # a mask's name is its image's, or goes on after it with one of these

# an image file and its mask's: text, not Path, as a million of them lie in every worker's memory
ImageAndMask = tuple[str, str | None]
Places = dict[Split, tuple[Path, Path]]  # folders of images and of masks


def find_pairs(root: Path, seed: int) -> dict[Split, list[ImageAndMask]]:
    """The images of each split, each with its mask, in the order of their names."""
    require_folder(root, f"give a folder of images and masks ({LAYOUTS})")
    if is_chase(root):
        return _chase_pairs(root)
    pairs = {split: match_masks(*folders) for split, folders in _places(root).items()}
    if "val" not in pairs:
        if len(pairs["train"]) < 2:
            raise UserError(f"{root} has a single image: add images, or some that validate")
        train, val = hold_out(np.zeros(len(pairs["train"]), np.int64), seed)
        pairs["train"], pairs["val"] = ([pairs["train"][row] for row in rows] for rows in (train, val))
    return pairs


def match_masks(images: Path, masks: Path) -> list[ImageAndMask]:
    """Every file below `images` with the one below `masks` whose name is, or begins with, its own."""
    keys = {path: _key(path, images) for path in files_below(images)}
    if not keys:
        raise UserError(f"{images} has no images: add some, or remove it")
    named = set(keys.values())
    same, longer = defaultdict(list), defaultdict(list)
    for mask in files_below(masks):
        key = _key(mask, masks)
        if key in named:
            same[key].append(mask)
        else:
            longer[_owner(key, named)].append(mask)
    found = {key: same.get(key) or longer.get(key) or [] for key in named}
    if not any(found.values()):
        raise UserError(f"none of the {len(keys)} images in {images} has a mask in {masks}: expected equal names")
    for key, several in found.items():
        if len(several) > 1:
            raise UserError(f"{images / key} has the masks {listing(several)}: keep one")
    return [(path, found[key][0] if found[key] else None) for path, key in keys.items()]


def _key(path: str, folder: Path) -> str:
    return os.path.splitext(os.path.relpath(path, folder))[0]


def _owner(key: str, named: set[str]) -> str | None:
    """The longest name that the mask's begins with."""
    cuts = [place for place, letter in enumerate(key) if letter in JOINTS]
    return next((key[:cut] for cut in reversed(cuts) if key[:cut] in named), None)


def _places(root: Path) -> Places:
    places = {split: place for split, words in SPLITS.items() if (place := _place(root, words))}
    if "train" in places:
        unmasked = [root / word for word in SPLITS["val"] if (root / word).is_dir()]
        unmasked += [root / "images" / word for word in SPLITS["val"] if (root / "images" / word).is_dir()]
        if "val" not in places and unmasked:
            raise UserError(f"{unmasked[0]} has no folder of masks beside it: expected {LAYOUTS}")
        return places
    alone = [(root / "images", root / masks) for masks in MASKS]
    if place := next(filter(_both_exist, alone), None):
        return {"train": place}
    raise UserError(f"{root} has no images with masks: expected {LAYOUTS}")


def _place(root: Path, words: Iterable[str]) -> tuple[Path, Path] | None:
    """Where the split that may be called by any of `words` lies."""
    for word in words:
        candidates = [(root / word, root / f"{word}annot")]
        for masks in MASKS:
            candidates += [
                (root / "images" / word, root / masks / word),
                (root / word / "images", root / word / masks),
            ]
        if place := next(filter(_both_exist, candidates), None):
            return place
    return None


def _both_exist(folders: tuple[Path, Path]) -> bool:
    return all(folder.is_dir() for folder in folders)


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
