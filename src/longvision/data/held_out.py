"""A set with the splits that a run knows: what was held out stays held out, whatever was added since."""

from collections.abc import Sequence
from typing import Any

from longvision.data.fingerprint import Fingerprint, Image
from longvision.data.problems import counted, listing
from longvision.data.sources.base import Source
from longvision.data.sources.regrouped import Place, RegroupedSource
from longvision.data.splits import SAID
from longvision.errors import UserError
from longvision.types import Split

Known = tuple[Source[Any], Fingerprint]  # a source, and what it is


def as_trained(source: Source[Any], run: Fingerprint, earlier: Sequence[Fingerprint] = ()) -> Known:
    """For a run that goes on. Where validation images were drawn from the training images they are the same ones, and
    the training images come in the same order, those that are new at the end; else the source as it is. What was held
    out `earlier` and is there again is held out again."""
    now = Fingerprint.of(source)
    if not (run.drawn and source.draws_validation):
        return source, now
    if all(_names(now, split) == _names(run, split) for split in ("train", "val")):
        return source, now
    places = _places(now)
    held = dict.fromkeys(name for known in (run, *earlier) for name in _names(known, "val"))
    val = [places.pop(name) for name in held if name in places]
    test = [places.pop(name) for name in _names(now, "test")]
    train = [places.pop(name) for name in _names(run, "train") if name in places]
    return _regrouped(source, now, {"train": [*train, *places.values()], "val": val, "test": test})


def unseen_by_weights(source: Source[Any], weights: Sequence[Fingerprint], name: str) -> Known:
    """For a new run that begins with the weights of another one, called `name`: where validation images are drawn from
    the training images, what the other run held out stays held out, and of what it trained on nothing is. It notes
    this, and what of held-out images the weights have seen all the same."""
    now = Fingerprint.of(source)
    trained = set[str]().union(*(known.keys("train") for known in weights))
    if not trained & now.keys("train", "val", "test"):
        return source, now
    held = set[str]().union(*(known.keys("val", "test") for known in weights)) - trained
    if source.draws_validation:
        source, now = _drawn_anew(source, now, trained, held, name)
    for split in ("val", "test"):
        if seen := [image.name for image in now.images.get(split, []) if image.key in trained]:
            source.notes.append(
                f"{len(seen)} of the {len(now.images[split])} {SAID[split]} images trained the weights of {name} "
                f"({listing(seen)}): figures on them are not those of unseen images"
            )
    return source, now


def _drawn_anew(source: Source[Any], now: Fingerprint, trained: set[str], held: set[str], name: str) -> Known:
    """With what is `held` and what was drawn of images that are new; as it is where that leaves nothing to validate or
    to train on."""
    groups: dict[Split, list[Place]] = {"train": [], "val": [], "test": []}
    kept = 0
    for split, images in now.images.items():
        for row, image in enumerate(images):
            stays = split != "test" and image.key in held
            kept += stays
            here: Split = "train" if split == "val" and image.key in trained else split
            groups["val" if stays else here].append((split, row))
    if not groups["val"] or not groups["train"]:
        return source, now
    others = "" if kept == len(groups["val"]) else "; the others are drawn from images that it did not have"
    source.notes.append(
        f"{kept} of the {len(groups['val'])} validation images are those that {name} held out, and stay so{others}"
    )
    return _regrouped(source, now, groups)


def held_out(source: Source[Any], run: Fingerprint, split: Split) -> Source[Any]:
    """For an evaluation: the images that the run held out as `split`, wherever they are in the set now. It notes what
    is not as it was. Raises UserError where none of them is left."""
    names = _names(run, split)
    if not names or (split == "test" and not source.has_test):
        return source
    now = Fingerprint.of(source, [split])
    if set(names) - set(_names(now, split)):
        now = Fingerprint.of(source)
    places = _places(now)
    there = [name for name in names if name in places]
    gone, others = [name for name in names if name not in places], set(_names(now, split)) - set(names)
    what = f"{SAID[split]} images"
    if not there:
        raise UserError(
            f"none of the {len(names)} {what} that the run held out is in {source.name} ({listing(gone)}): "
            "give --data.path, data to evaluate on"
        )
    if gone:
        verb = "is" if len(gone) == 1 else "are"
        source.notes.append(
            f"{len(gone)} of the {len(names)} {what} that the run held out {verb} gone ({listing(gone)})"
        )
    if others and not source.draws_validation:
        source.notes.append(
            f"not there when the run was trained, and not used: {counted(len(others), f'{SAID[split]} image')} "
            f"({listing(sorted(others))}); --data.path evaluates on a folder of such"
        )
    source.notes.extend(_changed(run, now, split))
    if there == _names(now, split):
        return source
    groups: dict[Split, list[Place]] = {split: [places[name] for name in there]}
    return RegroupedSource(source, {"val": [], **groups})


def unseen_by_run(source: Source[Any], split: Split, run: Sequence[Fingerprint]) -> tuple[Source[Any], bool]:
    """For an evaluation elsewhere, on a split that is said to be new: without what the run was trained on, where it is
    the run's own set in another place, which it notes; -> whether it is. Where only a part of it has trained, that is
    noted."""
    images = Fingerprint.of(source, [split]).images[split]
    trained = set[str]().union(*(known.keys("train") for known in run))
    held = set[str]().union(*(known.keys("val", "test") for known in run)) - trained
    seen = [image.name for image in images if image.key in trained]
    unseen: list[Place] = [(split, row) for row, image in enumerate(images) if image.key in held]
    if unseen and len(seen) > len(trained) / 2:
        source.notes.append(
            f"{source.name} is the set that the run was trained on: the {len(unseen)} images that it held out are "
            "evaluated"
        )
        return RegroupedSource(source, {"val": [], split: unseen}), True
    if len(unseen) == len(images):
        source.notes.append("these images are those that the run held out")
    if seen:
        source.notes.append(
            f"the run was trained on {len(seen)} of these {len(images)} images ({listing(seen)}): the figures are not "
            "those of unseen images"
        )
    return source, False


def _changed(run: Fingerprint, now: Fingerprint, split: Split) -> list[str]:
    """The lines on held-out images whose label or content is another one now."""
    found = {image.name: image for images in now.images.values() for image in images}
    pairs = [(old, found[old.name]) for old in run.images[split] if old.name in found]
    labels = [old.name for old, new in pairs if old.label != new.label]
    contents = [old.name for old, new in pairs if old.mark and new.mark and old.mark != new.mark]
    lines = [("another label", labels), ("another content", contents)]
    return [f"{what} than when the run was trained: {counted(len(names), f'{SAID[split]} image')} ({listing(names)})"
            for what, names in lines if names]  # fmt: skip


def _regrouped(source: Source[Any], now: Fingerprint, groups: dict[Split, list[Place]]) -> Known:
    images: dict[Split, list[Image]] = {
        split: [now.images[part][row] for part, row in places]
        for split, places in groups.items()
        if places or split != "test"
    }
    return RegroupedSource(source, groups), Fingerprint(now.classes, now.ids, now.drawn, now.binary, images)


def _names(fingerprint: Fingerprint, split: Split) -> list[str]:
    return [image.name for image in fingerprint.images.get(split, [])]


def _places(fingerprint: Fingerprint) -> dict[str, Place]:
    return {
        image.name: (split, row) for split, images in fingerprint.images.items() for row, image in enumerate(images)
    }
