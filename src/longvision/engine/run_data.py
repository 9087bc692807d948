"""The data of a run, when it or its weights are used again: the same, or what has changed is said. Loads no torch."""

import os
from dataclasses import replace
from typing import Any

import yaml

from longvision.data.changes import changes
from longvision.data.fingerprint import Fingerprint
from longvision.data.held_out import Known, as_trained, held_out, unseen_by_run, unseen_by_weights
from longvision.data.sources.base import Source
from longvision.data.sources.regrouped import Place, RegroupedSource
from longvision.data.splits import SAID
from longvision.engine.run import Run
from longvision.errors import UserError
from longvision.types import Split

EVALUATED: tuple[Split, ...] = ("val", "test", "train")
UNKNOWN = "{} has no data.json (it was removed, or an earlier version trained the run): {}"


def new_source(source: Source[Any], pretrained: object) -> Known:
    """For a new run: what was held out by the run whose weights it begins with, if they are a run's, stays held out."""
    run = Run.of_weights(pretrained) if isinstance(pretrained, str) else None
    if run is None:
        return source, Fingerprint.of(source)
    if not (known := run.fingerprints()):
        source.notes.append(UNKNOWN.format(run.path, "whether its weights have seen held-out images is not known"))
    return unseen_by_weights(source, known, str(run.path))


def resumed_source(run: Run, source: Source[Any], allow_changes: bool) -> Known:
    """The source with the run's own splits, and what it is now. Raises UserError where it has changed."""
    known = run.fingerprints()
    if not known:
        source.notes.append(UNKNOWN.format(run.path, "whether the data has changed since is not known"))
        return source, Fingerprint.of(source)
    *earlier, before = known
    source, now = as_trained(source, before, earlier)
    lines = check_unchanged(run, now, source.name, allow_changes)
    source.notes.extend(f"changed since the run began: {line}" for line in lines)
    return source, replace(now, values=before.values)


def check_unchanged(run: Run, now: Fingerprint, name: str, allow_changes: bool = True) -> list[str]:
    """-> what is allowed to change and has. Raises UserError for changes with which the run cannot go on."""
    *earlier, before = run.fingerprints()
    if now == before:
        return []
    found = changes(before, now, earlier)
    if not found.forbidden and (allow_changes or not found.allowed):
        return found.allowed
    remedy = "start a new run" if found.forbidden else "go on with it as it is: --allow-changed-data"
    lines = "; ".join([*found.forbidden, *found.allowed])
    raise UserError(f"{name} is not the set that {run.path} was trained on: {lines}; restore it, or {remedy}")


def evaluated_source(run: Run, source: Source[Any], split: Split) -> Source[Any]:
    """The source with what the run held out as its split. Raises UserError where nothing of it is left."""
    before = run.fingerprint()
    if before is None:
        source.notes.append(UNKNOWN.format(run.path, f"the {SAID[split]} images are those that are there now"))
        return source
    return held_out(source, before, split)


def source_elsewhere(run: Run, source: Source[Any], asked: Split | None) -> tuple[Source[Any], Split, str]:
    """Data that is said to be another than the run's -> without what the run was trained on, where it is the run's own
    in another place; the split as which it is evaluated; and the words for what that is of the set."""
    source, split = choose_split(source, asked)
    group: Split = "test" if split == "test" else "val"
    where = f"the {split} split of " if split else ""
    if not (known := run.fingerprints()):
        source.notes.append(UNKNOWN.format(run.path, "whether it was trained on these images is not known"))
        return source, group, where
    source, is_own = unseen_by_run(source, group, known)
    return source, group, "the held-out images of " if is_own else where


def is_own_data(run: Run, path: str) -> bool:
    """Whether it is the folder that the run was trained on."""
    own = yaml.safe_load(run.configs()[-1].read_text(encoding="utf-8")).get("data", {}).get("path")
    return own is not None and os.path.realpath(own) == os.path.realpath(path)


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
