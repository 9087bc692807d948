"""Objects in COCO's format, for JSON."""

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from longvision.data.image_ids import FILE
from longvision.data.problems import counted, listing
from longvision.types import CocoIds, Detections, Target


class CocoResults:
    """Objects of one image after the other; masks are held run-length encoded.

    Args:
        categories: the classes' names.
        ids: what a COCO set calls them and its images. Without, label 0 becomes category 1.

    An image that the set lists, by its folder and name or by a name that it has once, gets its id and its name there;
    others, and those whose id an image before has, are numbered behind the last id. `notes` tells what is not certain.
    """

    def __init__(self, categories: Sequence[str], ids: CocoIds | None = None) -> None:
        self.category_ids = ids.categories if ids else list(range(1, len(categories) + 1))
        self.categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, categories, strict=True)
        ]
        self.known = _KnownImages(ids) if ids else None
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, size: tuple[int, int], found: Detections | Target) -> None:
        """An image of `size`, (height, width), and what was found in it, whatever the score."""
        height, width = size
        number, name = self.known.id_and_name(file_name) if self.known else (len(self.images) + 1, file_name)
        self.images.append({"id": number, "file_name": name, "width": width, "height": height})
        for annotation in _annotations(found, self.category_ids):
            self.annotations.append({"id": len(self.annotations) + 1, "image_id": number} | annotation)

    def notes(self) -> list[str]:
        """What is to be told of the images' ids, where a set has some."""
        return self.known.notes() if self.known else []

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Images, categories and annotations, these numbered from 1."""
        return {"images": self.images, "categories": self.categories, "annotations": self.annotations}


class _KnownImages:
    """Ids of images by folder and name. Each is given once, also where several images have it."""

    def __init__(self, ids: CocoIds) -> None:
        self.ids, self.next = ids, ids.next_image
        self.given: set[int] = set()
        self.by_name_alone: list[str] = []
        self.unknown: list[str] = []
        self.taken: list[str] = []

    def id_and_name(self, path: str) -> tuple[int, str]:
        key, by_name_alone = self._key(PurePath(path).parts)
        if key is not None and self.ids.images[key] not in self.given:
            self.given.add(self.ids.images[key])
            self.by_name_alone += [path] * by_name_alone
            return self.ids.images[key], key.split("/", 1)[-1]
        (self.unknown if key is None else self.taken).append(path)
        self.next += 1
        return self.next - 1, path

    def _key(self, parts: tuple[str, ...]) -> tuple[str | None, bool]:
        """The longest end of a path that is a folder and a name, else the longest that is one image's name alone; ->
        the image, if there is one, and whether it is known by its name alone."""
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        if found := next((end for end in ends if end in self.ids.images), None):
            return found, False
        names = next((self.ids.by_name[end] for end in ends if end in self.ids.by_name), [])
        return (names[0], True) if len({self.ids.images[name] for name in names}) == 1 else (None, False)

    def notes(self) -> list[str]:
        if not self.ids.images:
            return [
                f"images are numbered from 1: the ids of the training data's are not known (a run's folder has them in "
                f"{FILE}, its weights alone do not)"
            ]
        said = {
            "given an id of the training data's by the name alone, in another folder": self.by_name_alone,
            "called as none of the training data's": self.unknown,
            "with an id that an image before has": self.taken,
        }
        lines = [f"{counted(len(names), 'image')} {words} ({listing(names)})" for words, names in said.items() if names]
        first = self.ids.next_image
        if self.next > first:
            lines[-1] += f": ids that are new go from {first} to {self.next - 1}"
        return lines


def _annotations(found: Detections | Target, category_ids: Sequence[int | str]) -> Iterator[dict[str, Any]]:
    found = found.numpy()
    scores = None
    if isinstance(found, Detections):
        found = found.select(np.argsort(-found.scores, kind="stable"))
        scores = found.scores
    masks = None if found.masks is None else np.asarray(found.masks)
    shapes = None if masks is None else _encoded(masks)
    for i, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
        bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        annotation: dict[str, Any] = {"category_id": category_ids[int(found.labels[i])], "bbox": bbox, "iscrowd": 0}
        if scores is not None:
            annotation["score"] = round(float(scores[i]), 6)
        if shapes is None or masks is None:
            annotation["area"] = round((right - left) * (bottom - top), 3)
        else:
            annotation |= {"segmentation": shapes[i], "area": int(masks[i].sum())}
        yield annotation


def _encoded(masks_NHW: np.ndarray) -> list[dict[str, Any]]:
    """COCO's run lengths, as JSON holds them: the counts are text."""
    from faster_coco_eval.core import mask

    shapes = [mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8)) for mask_HW in masks_NHW]
    return [{"size": list(map(int, shape["size"])), "counts": shape["counts"].decode()} for shape in shapes]
