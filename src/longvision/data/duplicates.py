"""Images that are the same file, by content: in two splits, or under two classes."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from longvision.data.io.marks import mark_of, size_of
from longvision.data.io.threads import in_threads
from longvision.data.problems import counted, listing
from longvision.data.sources.base import Source
from longvision.data.splits import SAID
from longvision.types import Split

BLOCK = 1 << 20  # bytes that are read at once


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an image is, and what it is called there; `key` tells its content where it lies in no file."""

    split: Split
    name: str
    label: str
    file: str | None
    key: str


def duplicates(source: Source[Any]) -> list[str]:
    """A line on images that are in two splits, and one on those that one split has under two classes.

    Files are compared by size, then by parts, and read whole where both are equal; one that cannot be read equals none.
    """
    same = _same_content(_places(source))
    across = [_named(places) for places in same if len({place.split for place in places}) > 1]
    lines = [
        f"{counted(len(across), 'image')} of the same bytes in more than one split, so that metrics of held-out "
        f"images are too good: remove all but one of each ({listing(across, '; ')})"
    ] * bool(across)
    classes = set(source.classes)
    twice = [_named(places) for places in same if _has_two_classes(places, classes)]
    if twice:
        lines.append(
            f"{counted(len(twice), 'image')} of the same bytes under two classes of one split "
            f"({listing(twice, '; ')}): keep the right one"
        )
    return lines


def _places(source: Source[Any]) -> list[_Place]:
    splits: list[Split] = ["train", "val", *(["test"] if source.has_test else [])]  # type: ignore[list-item]
    return [
        _Place(split, one.name if one.file or one.mark else f"image {row}", one.label, one.file, one.mark or one.name)
        for split in splits
        for row, one in enumerate(source.listed_images(split))
    ]


def _same_content(places: Iterable[_Place]) -> list[list[_Place]]:
    """Groups of two and more."""
    unsure = list(places)
    for look in (size_of, mark_of, _digest):  # each costs more than the one before
        files = sorted({place.file for place in unsure if place.file})
        found = dict(zip(files, in_threads(look, files), strict=True))
        groups = defaultdict(list)
        for place in unsure:
            if key := found[place.file] if place.file else place.key:
                groups[key].append(place)
        same = [places for places in groups.values() if len(places) > 1]
        unsure = [place for places in same for place in places]
    return same


def _digest(file: str) -> str | None:
    words = hashlib.blake2b(digest_size=16)
    try:
        with open(file, "rb") as opened:
            while block := opened.read(BLOCK):
                words.update(block)
    except OSError:  # it is told where images are read
        return None
    return words.hexdigest()


def _has_two_classes(places: Iterable[_Place], classes: set[str]) -> bool:
    labels: dict[Split, set[str]] = defaultdict(set)
    for place in places:
        if place.label in classes:
            labels[place.split].add(place.label)
    return any(len(several) > 1 for several in labels.values())


def _named(places: Iterable[_Place]) -> str:
    return listing([f"{place.name} ({SAID[place.split]})" for place in places], " = ")
