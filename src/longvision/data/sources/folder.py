"""A folder per class: DIR/train/<class>/*, with DIR/val and DIR/test or without, or DIR/<class>/* alone."""

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from longvision.data.io.images import Channels, files_below, is_hidden, is_image, read_image
from longvision.data.io.threads import in_threads
from longvision.data.problems import refuse_many, require_folder
from longvision.data.sources.base import ImageSet, Source, hold_out
from longvision.errors import UnreadableImage, UserError
from longvision.types import Split

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}

Labelled = list[tuple[str, int]]  # files, each with the number of its class


class FolderSource(Source[int]):
    """The class folders below `root`, listed; no file is opened before a split is asked for.

    Class numbers follow the sorted names of the training folders. Without validation images, a tenth of each
    class, drawn with `seed`, validates. A test folder without class folders holds no labels and is not used.
    """

    def __init__(self, root: str | Path, channels: Channels = 3, seed: int = 0) -> None:
        self.name, self.channels, self.seed = str(root), channels, seed
        self.folders = _split_folders(Path(root))
        self.classes = _train_classes(self.folders["train"])
        self.listed = {split: self._list(split) for split in self.folders}
        _require_every_class(self.classes, self.listed["train"], self.folders["train"], "images")
        self.has_test = "test" in self.listed
        self._checked: dict[Split, Labelled] = {}

    def split(self, split: Split) -> ImageSet[int]:
        """The readable images of one split; files that are no images are reported once."""
        held_out = "val" not in self.listed and split != "test"
        files = self._readable("train" if held_out else split)
        if held_out:
            train, val = hold_out(np.array([label for _, label in files]), self.seed)
            files = [files[row] for row in (train if split == "train" else val)]
        return ImageSet(files, partial(_read, channels=self.channels))

    def _list(self, split: Split) -> Labelled:
        folder = self.folders[split]
        names = _class_folders(folder)
        if unknown := sorted(set(names) - set(self.classes)):
            raise UserError(
                f"{folder} has the classes {', '.join(unknown)}, which {self.folders['train']} has not: "
                "add training images for them, or remove their folders"
            )
        files = [(path, self.classes.index(name)) for name in names for path in files_below(folder / name)]
        if not files:
            raise UserError(f"{folder} has no images in class folders: add some, or remove {folder.name}/")
        return files

    def _readable(self, split: Split) -> Labelled:
        if split not in self._checked:
            folder, files = self.folders[split], self.listed[split]
            readable = in_threads(is_image, [path for path, _ in files])
            bad = [os.path.relpath(path, folder) for (path, _), fine in zip(files, readable) if not fine]
            refuse_many(bad, len(files), f"of {len(files)} files in {folder} are not images")
            self._checked[split] = [file for file, fine in zip(files, readable) if fine]
            if split == "train":
                _require_every_class(self.classes, self._checked[split], folder, "readable images")
        return self._checked[split]


def _read(file: tuple[str, int], channels: Channels) -> tuple[Image.Image, int]:
    path, label = file
    try:
        return read_image(path, channels), label
    except FileNotFoundError as error:
        # it was there when the folder was listed: for a run of days, one image less, not the end
        raise UnreadableImage(f"{path} has disappeared since the folder was listed") from error


def _split_folders(root: Path) -> dict[Split, Path]:
    """Where each split lies; a root whose own folders are the classes is all training images."""
    require_folder(root, "give a folder with one folder of images per class")
    names = _class_folders(root)
    splits: dict[Split, Path] = {}
    for split, aliases in NAMES.items():
        if found := [name for name in aliases if name in names]:
            splits[split] = root / found[0]
    if "train" in splits and _class_folders(splits["train"]):
        if "test" in splits and not _class_folders(splits["test"]):
            del splits["test"]
        return splits
    if names and len(splits) == len(names):
        raise UserError(
            f"{root} has {', '.join(names)} but no class folders in train: "
            f"expected one folder of images per class in {root / 'train'}"
        )
    return {"train": root}


def _train_classes(folder: Path) -> list[str]:
    names = _class_folders(folder)
    if not names:
        raise UserError(f"{folder} has no class folders: expected one folder of images per class in it")
    if len(names) == 1:
        raise UserError(
            f"{folder} has only the class {names[0]}: two classes are needed, each a folder of its own images"
        )
    return names


def _require_every_class(classes: list[str], files: Labelled, folder: Path, what: str) -> None:
    present = {label for _, label in files}
    if missing := [name for label, name in enumerate(classes) if label not in present]:
        raise UserError(f"{folder} has no {what} of {', '.join(missing)}: add some, or remove the folders")


def _class_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
