"""What has changed between a set as a run saw it and the set that is there now."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from longvision.data.fingerprint import SPLITS, Fingerprint, Image
from longvision.data.problems import counted, listing
from longvision.data.splits import SAID
from longvision.types import Split

Key = TypeVar("Key")
Placed = dict[str, tuple[Split, Image]]


@dataclass
class Changes:
    """In words.

    Args:
        forbidden: with what a run cannot go on: classes that have moved, images that trained and now do not, or the
            other way round, held-out images with another content, and no validation image left by which epochs were
            compared.
        allowed: what has a meaning when it is wanted: images added, gone, or labelled otherwise, and training images
            with another content.
    """

    forbidden: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)


def changes(before: Fingerprint, now: Fingerprint, earlier: Iterable[Fingerprint] = ()) -> Changes:
    """What is not as it was.

    Args:
        before: the set as the run saw it last.
        now: the set that is there.
        earlier: as the run saw it before that: what has ever trained is never held out, nor the other way round.
    """
    found = Changes(_class_changes(before, now))
    if not found.forbidden and before.ids != now.ids:
        pairs = [f"{name}: {old}, now {new}" for name, old, new in zip(now.classes, before.ids, now.ids) if old != new]
        found.allowed.append(f"ids of classes are others ({listing(pairs)})")
    if found.forbidden:  # then every label is another one
        return found
    old, new = _placed(before), _placed(now)
    gone = {name: old[name] for name in old if name not in new}
    added = {name: new[name] for name in new if name not in old}
    same = [(name, old[name], new[name]) for name in new if name in old and old[name][0] == new[name][0]]
    others = {name: b for name, a, b in same if a[1].mark and b[1].mark and a[1].mark != b[1].mark}
    ever = [old, *map(_placed, earlier)]
    moved = [*_moved_names(new, ever), *_moved_files(added | others, ever)]
    for (a, b), names in _grouped(((a, b), name) for name, a, b in dict.fromkeys(moved)).items():
        found.forbidden.append(f"{counted(len(names), 'image')}: {SAID[a]} before, {SAID[b]} now ({listing(names)})")
    for split, names in _grouped((split, name) for name, (split, _) in others.items()).items():
        lines = found.allowed if split == "train" else found.forbidden
        lines.append(f"{counted(len(names), 'image')} with another content, {SAID[split]} ({listing(names)})")
    held = [image.name for image in before.images.get("val", [])]
    if held and not any(name in new and new[name][0] == "val" for name in held):
        found.forbidden.append(f"none of the {len(held)} validation images is left, by which epochs were compared")
    kept = [(name, old[name][1].label, new[name][1].label) for name in new if name in old]
    relabelled = [f"{name}: {a}, now {b}" for name, a, b in kept if a != b] + _moved_classes(gone, added)
    if relabelled:
        found.allowed.append(f"{counted(len(relabelled), 'image')} have other labels ({listing(relabelled)})")
    for words, images in (("added", added), ("gone", gone)):
        for split, names in _grouped((split, name) for name, (split, _) in images.items()).items():
            found.allowed.append(f"{counted(len(names), 'image')} {words}, {SAID[split]} ({listing(names)})")
    return found


def _class_changes(before: Fingerprint, now: Fingerprint) -> list[str]:
    if before.classes == now.classes:
        return []
    old, new = ({name: number for number, name in enumerate(one.classes)} for one in (before, now))
    gone, added = ([name for name in one if name not in other] for one, other in ((old, new), (new, old)))
    moved = [f"{name} was {old[name]}, is {new[name]}" for name in new if name in old and old[name] != new[name]]
    lines = [f"the classes {listing(gone)} are gone"] * bool(gone) + [f"the classes {listing(added)} are new"] * bool(
        added
    )
    return [*lines, *([f"classes have other numbers ({listing(moved)})"] * bool(moved))]


def _moved_names(new: Placed, ever: Iterable[Placed]) -> list[tuple[str, Split, Split]]:
    """Images that are in another split than they ever were."""
    return [
        (name, images[name][0], split)
        for images in ever
        for name, (split, _) in new.items()
        if name in images and images[name][0] != split
    ]


def _moved_files(fresh: Placed, ever: Iterable[Placed]) -> list[tuple[str, Split, Split]]:
    """Of what is `fresh`, files under another name or in another folder, or their copies, that train now and were held
    out, or the other way round."""
    was: dict[str, set[Split]] = {}
    for split, image in (one for images in ever for one in images.values()):
        if image.mark:
            was.setdefault(image.mark, set()).add(split)
    return [
        (name, old, split)
        for name, (split, image) in fresh.items()
        if split not in was.get(image.mark, ())
        for old in sorted(was.get(image.mark, ()))
    ]


def _moved_classes(gone: Placed, added: Placed) -> list[str]:
    """Files that lie in another class's folder of the same split."""
    before = {(split, image.mark): image for split, image in gone.values() if image.mark}
    lines = []
    for name, (split, image) in added.items():
        other = before.get((split, image.mark))
        if other and other.label != image.label:
            lines.append(f"{name}: {other.label}, now {image.label}")
    return lines


def _placed(fingerprint: Fingerprint) -> Placed:
    return {image.name: (split, image) for split in SPLITS for image in fingerprint.images.get(split, [])}


def _grouped(pairs: Iterable[tuple[Key, str]]) -> dict[Key, list[str]]:
    groups: dict[Key, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return groups
