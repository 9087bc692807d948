"""What a model says of one image: its values, a drawing of them, a row of a table, and files. Loads no torch."""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longvision.files import written_beside
from longvision.inference.coco import CocoResults
from longvision.types import IGNORE, CocoIds, Colour, Detections

THRESHOLD = 0.5  # least score of an object that is drawn and counted
SHOWN = 5  # classes in a drawing or a table
LONGEST_NAME = 255  # bytes of a file's name, on most file systems


@dataclass(frozen=True)
class Result:
    """A model's answer for one image.

    Args:
        name: the image's path, or "image-1" and so on where it had none.
        input: the image itself, upright, as 8 bits: grey, or colour of the first three channels.
        classes: the names of all classes.
    """

    name: str
    input: Image.Image
    classes: list[str]

    def image(self) -> Image.Image:
        """The image with what was found in it."""
        raise NotImplementedError

    def cells(self) -> list[str]:
        """What was found in a few words, for a row of a table."""
        raise NotImplementedError

    def to_dict(self) -> Any:
        """For JSON."""
        raise NotImplementedError

    def files(self) -> dict[str, Any]:
        """What `save` writes: endings of file names -> an image, or a dictionary for JSON."""
        return {".png": self.image(), ".json": self.to_dict()}

    def save(self, folder: str | Path) -> list[Path]:
        """Write the drawing and the values into a folder, under the image's name; -> the files.

        Nothing is overwritten: a name that is taken gets a number.
        """
        return write_new(Path(folder), Path(self.name).stem, self.files())


@dataclass(frozen=True)
class ClassResult(Result):
    """The probabilities of an image's classes, float32 (K,)."""

    probabilities_K: np.ndarray

    def top(self, count: int = SHOWN) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities, most likely first."""
        order = np.argsort(-self.probabilities_K, kind="stable")[:count].tolist()
        return [(self.classes[k], float(self.probabilities_K[k])) for k in order]

    def image(self) -> Image.Image:
        from longvision.viz.bars import draw_classes

        return draw_classes(self.input, Path(self.name).name, self.top())

    def cells(self) -> list[str]:
        return [f"{name} {100 * share:.1f} %" for name, share in self.top()]

    def to_dict(self) -> dict[str, Any]:
        """The five most likely classes: {"file": …, "top": [{"class": …, "probability": …}, …]}."""
        return {"file": self.name, "top": [{"class": name, "probability": share} for name, share in self.top()]}


@dataclass(frozen=True)
class LabelResult(ClassResult):
    """The probability of each class, float32 (K,), of an image that may have any number of them."""

    def labels(self, threshold: float = THRESHOLD) -> list[str]:
        """The classes that are at least as likely as `threshold`, the likeliest first."""
        return [name for name, share in self.top(len(self.classes)) if share >= threshold]

    def image(self, threshold: float = THRESHOLD) -> Image.Image:
        from longvision.viz.bars import draw_classes

        return draw_classes(self.input, Path(self.name).name, self.top(), len(self.labels(threshold)))

    def cells(self, threshold: float = THRESHOLD) -> list[str]:
        """Those of at least `threshold`, all of them."""
        found = [f"{name} {100 * share:.1f} %" for name, share in self.top(len(self.classes)) if share >= threshold]
        return found or [f"nothing above {threshold:.2f}"]

    def to_dict(self, threshold: float = THRESHOLD) -> dict[str, Any]:
        """{"file": …, "labels": [those of at least `threshold`], "probabilities": {class: probability of each}}."""
        shares = dict(self.top(len(self.classes)))
        return {"file": self.name, "labels": self.labels(threshold), "probabilities": shares}


@dataclass(frozen=True)
class MaskResult(Result):
    """The class of each pixel.

    Args:
        palette: a colour for each class.
        mask_HW: class numbers (H, W) uint8.
        scores: of each class that occurs, the mean probability of its pixels.
    """

    palette: list[Colour]
    mask_HW: np.ndarray
    scores: dict[int, float]

    def shares(self) -> list[tuple[str, float, float]]:
        """Classes that occur, their share of the pixels and their score, the largest first."""
        counts = np.bincount(self.mask_HW.ravel(), minlength=len(self.classes)) / self.mask_HW.size
        order = sorted(self.scores, key=lambda k: -counts[k])
        return [(self.classes[k], float(counts[k]), self.scores[k]) for k in order]

    def image(self) -> Image.Image:
        from longvision.viz.overlays import draw_segmentation

        return draw_segmentation(self.input, {"prediction": self.mask_HW}, self.classes, self.palette, self.scores)

    def cells(self) -> list[str]:
        return [f"{name} {100 * share:.1f} %" for name, share, _ in self.shares()[:SHOWN]]

    def to_dict(self) -> dict[str, Any]:
        """{"file": …, "classes": [{"class": …, "pixels": share, "score": …}, …]}."""
        rows = [{"class": name, "pixels": share, "score": score} for name, share, score in self.shares()]
        return {"file": self.name, "classes": rows}

    def files(self) -> dict[str, Any]:
        """The drawing, and a PNG whose values are the class numbers."""
        return {".png": self.image(), "-mask.png": palette_image(self.mask_HW, self.palette)}


@dataclass(frozen=True)
class ObjectResult(Result):
    """Objects, of every score that the model gives.

    Args:
        palette: a colour for each class.
        detections: as NumPy arrays, in the image's pixels.
        ids: what the training data calls its categories and images, where it was COCO's.
        full: how many there can be, where as many were found: there may be more; else 0.
        least_score: objects that score less were dropped by the model.
    """

    palette: list[Colour]
    detections: Detections
    ids: CocoIds | None = None
    full: int = 0
    least_score: float = 0.0

    def image(self, threshold: float = THRESHOLD) -> Image.Image:
        """With the objects that score at least `threshold`."""
        from longvision.viz.overlays import draw_objects

        return draw_objects(self.input, {"prediction": self.detections}, self.classes, self.palette, threshold)

    def cells(self, threshold: float = THRESHOLD) -> list[str]:
        """How many of each class score at least `threshold`."""
        labels = self.detections.labels[self.detections.scores >= threshold]
        numbers, counts = np.unique(labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        counted = ", ".join(f"{self.classes[numbers[i]]} × {counts[i]}" for i in order)
        return [counted or f"nothing above {threshold:.2f}"]

    def to_dict(self) -> dict[str, Any]:
        """COCO's format. Warns where the image's id is not certain."""
        found = CocoResults(self.classes, self.ids)
        found.add(self.name, (self.input.height, self.input.width), self.detections)
        for note in found.notes():
            warnings.warn(note, stacklevel=2)
        return found.as_dict()


def palette_image(mask_HW: np.ndarray, palette: list[Colour]) -> Image.Image:
    """Class numbers (H, W) uint8 -> an image of mode P that holds them as they are, and shows them in their colours.

    255, ignored, is white.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = 255
    image = Image.fromarray(np.ascontiguousarray(mask_HW, dtype=np.uint8))
    image.putpalette(colours.tobytes())
    return image


def _cut(name: str, length: int) -> str:
    """The beginning that takes at most so many bytes."""
    while len(os.fsencode(name)) > length:
        name = name[:-1]
    return name


def write_new(folder: Path, stem: str, contents: Mapping[str, Any]) -> list[Path]:
    """Images, and dictionaries as JSON, under STEM and their endings; STEM-2, STEM-3, ... where one of them exists.

    A stem too long for a file system with the ending is cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = _cut(stem, LONGEST_NAME - max(len(ending) for ending in contents) - len("-99999"))
    number, name = 1, stem
    while any((folder / f"{name}{ending}").exists() for ending in contents):
        number += 1
        name = f"{stem}-{number}"
    paths = [folder / f"{name}{ending}" for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        with written_beside(path) as beside:
            if isinstance(content, Image.Image):
                content.save(beside)
            else:
                beside.write_text(json.dumps(content), encoding="utf-8")
    return paths
