"""How a set tells what is wrong with it: how many, which, and what to do. A few of many are left out with a warning."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from longvision.errors import MissingFileError, UserError

TOLERATED = 0.01  # share of a set: beyond it, what is left is not the set that was meant
NAMED = 10


def listing(found: Sequence[str], between: str = ", ") -> str:
    """The first ten."""
    return between.join(found[:NAMED]) + (f"{between}…" if len(found) > NAMED else "")


def refuse(found: Sequence[str], problem: str, remedy: str) -> None:
    """Raises UserError when something was found: how many, what is wrong, which, and what to do about it."""
    if found:
        raise UserError(f"{len(found)} {problem} ({listing(found)}): {remedy}")


def refuse_many(found: Sequence[str], total: int, problem: str) -> None:
    """Warns of things that are left out; raises UserError when they are more than 1 % of all."""
    if is_too_many(len(found), total):
        refuse(found, problem, "correct or remove them, they are more than 1 %")
    if found:
        warnings.warn(f"{len(found)} {problem} ({listing(found)}): they are left out", stacklevel=3)


def unreadable(reasons: Sequence[str], count: int, total: int, where: str) -> str:
    """In words: `count` of all the images, of which `reasons` tell some."""
    return f"{count} of {total} images in {where} cannot be read ({listing(reasons, '; ')})"


def too_many_unreadable(reasons: Sequence[str], count: int, total: int, where: str) -> UserError:
    return UserError(f"{unreadable(reasons, count, total, where)}, more than 1 %: remove or replace them")


def skipped_note(reasons: Sequence[str], total: int, where: str) -> str:
    """Of a few unreadable images that are met before they are loaded."""
    return f"{unreadable(reasons, len(reasons), total, where)}: they are skipped"


def is_too_many(bad: int, total: int) -> bool:
    return bad > TOLERATED * total


def require_folder(path: Path, remedy: str) -> None:
    """Raises UserError where there is none."""
    if not os.path.exists(path):  # also for a path too long for the system
        raise MissingFileError(f"{path} does not exist: {remedy}")
    if not path.is_dir():
        raise UserError(f"{path} is a file: {remedy}")
