"""The data of a run, when the run is used again: the same, or what has changed is said."""

import os
from typing import TYPE_CHECKING, Any

import yaml

from longvision.data.changes import changes
from longvision.data.fingerprint import Fingerprint
from longvision.data.held_out import as_trained, held_out
from longvision.data.sources.base import Source, Trained
from longvision.data.sources.regrouped import Place, RegroupedSource
from longvision.data.splits import SAID
from longvision.errors import UserError
from longvision.types import Split

if TYPE_CHECKING:
    from longvision.engine.run import Run
    from longvision.inference.description import Description

EVALUATED: tuple[Split, ...] = ("val", "test", "train")
UNKNOWN = "{} was written by an earlier version, which did not note its data: {}"


def resumed_source(run: "Run", source: Any, allow_changes: bool) -> tuple[Any, Fingerprint]:
    """The source with the run's own splits, and what it is now. Raises UserError where it has changed."""
    known = run.fingerprints()
    if not known:
        source.notes.append(UNKNOWN.format(run.path, "whether it has changed since is not known"))
        return source, Fingerprint.of(source)
    *earlier, before = known
    source = as_trained(source, before, earlier)
    now = Fingerprint.of(source)
    found = changes(before, now, source.name, earlier)
    if found.forbidden:
        lines = "; ".join([*found.forbidden, *found.allowed])
        raise UserError(
            f"{source.name} is not the set that {run.path} was trained on: {lines}; restore it, or start a new run"
        )
    if found.allowed and not allow_changes:
        raise UserError(
            f"{source.name} is not the set that {run.path} was trained on: {'; '.join(found.allowed)}; restore it, or "
            "go on with it as it is: --allow-changed-data"
        )
    source.notes.extend(f"changed since the run began: {line}" for line in found.allowed)
    return source, now


def evaluated_source(run: "Run", source: Any, split: Split) -> Any:
    """The source with what the run held out as its split. Raises UserError where nothing of it is left."""
    before = run.fingerprint()
    if before is None:
        source.notes.append(UNKNOWN.format(run.path, f"the {SAID[split]} images are those that are there now"))
        return source
    return held_out(source, before, split)


def is_own_data(run: "Run", path: str) -> bool:
    """Whether it is the folder that the run was trained on."""
    own = yaml.safe_load(run.configs()[-1].read_text(encoding="utf-8")).get("data", {}).get("path")
    return own is not None and os.path.realpath(own) == os.path.realpath(path)


def as_trained_on(run: "Run", about: "Description") -> Trained:
    """What data elsewhere is read by."""
    known = run.fingerprint()
    return Trained(about.classes, bool(about.head.get("masks")), known is not None and known.binary)


def choose_split(source: Source[Any], asked: Split | None) -> tuple[Source[Any], Split | None]:
    """Of data elsewhere: what was asked for, else its validation, test or all images. -> the source, and which split it
    is; None for all, which are its "val" then. Raises UserError where there is no such split."""
    there = next(split for split in EVALUATED if split in source.splits)
    if asked and asked not in source.splits:
        raise UserError(
            f"{source.name} has no {SAID[asked]} images: add them as {asked}, or use "
            f"{'all its' if there == 'train' else f'the {SAID[there]}'} images, without --split"
        )
    if (split := asked or there) != "train":
        return source, split
    places: list[Place] = [("train", row) for row in range(len(source.split("train")))]
    return RegroupedSource(source, {"val": places}), None
