"""A folder per class: DIR/train/<class>/*, with DIR/val and DIR/test or without, or DIR/<class>/* alone."""

import os
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, is_image, read_image
from longvision.data.io.listing import ending, has_image_name, list_files
from longvision.data.io.threads import in_threads
from longvision.data.leftovers import cannot_be_listed, no_images
from longvision.data.problems import refuse_many
from longvision.data.serialized import SerializedList
from longvision.data.sources.base import ImageSet, Source, Trained, hold_out, unknown_classes
from longvision.data.sources.class_folders import check_nested, class_folders, refuse_splits, train_classes
from longvision.data.sources.folder_layout import find_any_layout, find_layout
from longvision.errors import UserError
from longvision.types import Split

Labelled = Sequence[tuple[str, int]]  # files, each with the number of its class


class FolderSource(Source[int]):
    """The class folders below `root`, listed; no file is opened before a split is asked for.

    Class numbers follow the sorted names of the training folders. Without validation images, a tenth of each
    class, drawn with `seed`, validates. A test folder without class folders holds no labels and is not used.
    """

    def __init__(self, root: str | Path, channels: Channels = 3, seed: int = 0, trained: Trained | None = None) -> None:
        self.name, self.channels, self.seed = str(root), channels, seed
        self.trained = trained
        layout = find_layout(Path(root)) if trained is None else find_any_layout(Path(root), trained.classes)
        self.folders = layout.splits
        self.doubtful = layout.doubtful
        self.notes += layout.notes
        self.classes = trained.classes if trained else train_classes(self.folders["train"], self.notes)
        self.listed = {split: self._list(split) for split in self.folders}
        self.has_test, self.splits = "test" in self.listed, list(self.listed)
        self.draws_validation = trained is None and "val" not in self.listed
        if trained is None:
            _require_every_class(self.classes, self.listed["train"], self.folders["train"], "images")
        self._checked: dict[Split, Labelled] = {}
        self.left_out: dict[Split, int] = {}  # files that are not images

    def split(self, split: Split) -> ImageSet[int]:
        """The readable images of one split; files that are no images are reported once."""
        held_out = self.draws_validation and split != "test"
        files = self._readable("train" if held_out else split)
        if held_out:
            train, val = hold_out(np.array([label for _, label in files]), self.seed)
            files = [files[row] for row in (train if split == "train" else val)]
        images = ImageSet(files, partial(_read, channels=self.channels), itemgetter(0))
        images.left_out = 0 if held_out and split == "val" else self.left_out["train" if held_out else split]
        return images

    def _list(self, split: Split) -> Labelled:
        folder = self.folders[split]
        names = class_folders(folder)
        if unknown := sorted(set(names) - set(self.classes)):
            if self.trained:
                raise unknown_classes(folder, unknown, self.classes, "rename or remove their folders")
            raise UserError(
                f"{folder} has the classes {', '.join(unknown)}, which {self.folders['train']} has not: "
                "add training images for them, or remove their folders"
            )
        files: list[tuple[str, int]] = []
        nested: dict[str, list[str]] = {}
        numbers = {text: number for number, text in enumerate(self.classes)}
        for text, name in names.items():
            found = list_files(folder / name)
            self.notes += cannot_be_listed(found.problems)
            nested[name] = check_nested(folder / name, found.files, self.notes)
            files += [(path, numbers[text]) for path in found.files]
        if self.doubtful:
            refuse_splits(folder, nested)
        if not files:
            raise UserError(f"{folder} has no images in class folders: add some, or remove {folder.name}/")
        return SerializedList(files)

    def _readable(self, split: Split) -> Labelled:
        if split not in self._checked:
            folder, files = self.folders[split], self.listed[split]
            readable = in_threads(is_image, [path for path, _ in files])
            bad = [path for (path, _), fine in zip(files, readable) if not fine]
            others = [os.path.relpath(path, folder) for path in bad if ending(path) and not has_image_name(path)]
            self.notes += no_images(others, folder)
            bad = [os.path.relpath(path, folder) for path in bad if not ending(path) or has_image_name(path)]
            count = len(files) - len(others)
            hint = ", HEIC to be converted to JPEG first" * any(ending(path) in (".heic", ".heif") for path in bad)
            refuse_many(
                bad, count, f"of {count} files in {folder} are not images that can be read{hint}", self.tolerated
            )
            self.left_out[split] = len(bad)
            self._checked[split] = SerializedList(file for file, fine in zip(files, readable) if fine)
            if split == "train" and self.trained is None:
                _require_every_class(self.classes, self._checked[split], folder, "readable images")
        return self._checked[split]


def _read(file: tuple[str, int], channels: Channels) -> tuple[AnyImage, int]:
    path, label = file
    return read_image(path, channels), label


def _require_every_class(classes: list[str], files: Labelled, folder: Path, what: str) -> None:
    present = {label for _, label in files}
    if missing := [name for label, name in enumerate(classes) if label not in present]:
        raise UserError(f"{folder} has no {what} of {', '.join(missing)}: add some, or remove the folders")
