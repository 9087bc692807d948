"""The images of a source in other splits than it would make of them: in those that a run knows."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import IO, Any

from longvision.data.io.deep import AnyImage
from longvision.data.sources.base import ImageSet, Label, Listed, Source
from longvision.types import Split

Place = tuple[Split, int]  # where an image is in the source


class RegroupedSource(Source[Label]):
    """`groups` says for each split which images of the source it has. A split without images is not there."""

    def __init__(self, source: Source[Label], groups: Mapping[Split, Sequence[Place]]) -> None:
        self.source, self.groups = source, groups
        self.name, self.classes, self.ids, self.palette = source.name, source.classes, source.ids, source.palette
        self.has_masks, self.binary, self.coco_ids = source.has_masks, source.binary, source.coco_ids
        self.multilabel = source.multilabel
        self.draws_validation, self.tolerated = source.draws_validation, source.tolerated
        self.has_test = bool(groups.get("test"))
        self.notes = source.notes

    def split(self, split: Split) -> ImageSet[Label]:
        sets = {part: self.source.split(part) for part in self._parts(split)}
        images = ImageSet(self.groups[split], partial(_read, sets), partial(_file, sets), partial(_window, sets))
        parts = [sets[split]] if split in sets else sets.values()  # so that none counts in two splits
        images.left_out = sum(getattr(part, "left_out", 0) for part in parts)
        return images

    def listed_images(self, split: Split) -> list[Listed]:
        listed = {part: self.source.listed_images(part) for part in self._parts(split)}
        return [listed[part][row] for part, row in self.groups[split]]

    def check(self, split: Split) -> None:
        for part in self._parts(split):
            self.source.check(part)
        self.most_objects = self.source.most_objects

    def _parts(self, split: Split) -> list[Split]:
        return sorted({part for part, _ in self.groups[split]})


def _read(sets: dict[Split, ImageSet[Any]], place: Place) -> tuple[AnyImage, Any]:
    split, row = place
    return sets[split][row]


def _file(sets: dict[Split, ImageSet[Any]], place: Place) -> str | bytes | None:
    split, row = place
    return sets[split].file_of(row)


def _window(sets: dict[Split, ImageSet[Any]], place: Place) -> IO[bytes] | None:
    split, row = place
    return sets[split].window_of(row)
