"""A set with the splits that a run knows: what was held out stays held out, whatever was added since."""

from collections.abc import Iterable
from typing import Any

from longvision.data.fingerprint import Fingerprint
from longvision.data.problems import listing
from longvision.data.sources.base import Source
from longvision.data.sources.regrouped import Place, RegroupedSource
from longvision.data.splits import SAID
from longvision.errors import UserError
from longvision.types import Split


def as_trained(source: Source[Any], run: Fingerprint, earlier: Iterable[Fingerprint] = ()) -> Source[Any]:
    """For a run that goes on. Where validation images were drawn from the training images they are the same ones, and
    the training images come in the same order, those that are new at the end; else the source as it is. What was held
    out `earlier` and is there again is held out again."""
    if not (run.drawn and source.draws_validation):
        return source
    now = Fingerprint.of(source)
    if all(_names(now, split) == _names(run, split) for split in ("train", "val")):
        return source
    places = _places(now)
    held = dict.fromkeys(name for known in (run, *earlier) for name in _names(known, "val"))
    val = [places.pop(name) for name in held if name in places]
    test = [places.pop(name) for name in _names(now, "test")]
    train = [places.pop(name) for name in _names(run, "train") if name in places]
    return RegroupedSource(source, {"train": [*train, *places.values()], "val": val, "test": test})


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
        source.notes.append(f"{len(gone)} of the {len(names)} {what} that the run held out are gone ({listing(gone)})")
    if others and not source.draws_validation:
        source.notes.append(
            f"{len(others)} {what} were not there when the run was trained ({listing(sorted(others))}): they are not "
            "used; --data.path evaluates on a folder of them"
        )
    source.notes.extend(_changed(run, now, split))
    if there == _names(now, split):
        return source
    groups: dict[Split, list[Place]] = {split: [places[name] for name in there]}
    return RegroupedSource(source, {"val": [], **groups})


def _changed(run: Fingerprint, now: Fingerprint, split: Split) -> list[str]:
    """The lines on held-out images whose label or content is another one now."""
    found = {image.name: image for images in now.images.values() for image in images}
    pairs = [(old, found[old.name]) for old in run.images[split] if old.name in found]
    labels = [old.name for old, new in pairs if old.label != new.label]
    contents = [old.name for old, new in pairs if ":" in old.mark and ":" in new.mark and old.mark != new.mark]
    lines = [("another label", labels), ("another content", contents)]
    return [f"{len(names)} {SAID[split]} images have {what} than when the run was trained ({listing(names)})"
            for what, names in lines if names]  # fmt: skip


def _names(fingerprint: Fingerprint, split: Split) -> list[str]:
    return [image.name for image in fingerprint.images.get(split, [])]


def _places(fingerprint: Fingerprint) -> dict[str, Place]:
    return {
        image.name: (split, row) for split, images in fingerprint.images.items() for row, image in enumerate(images)
    }
