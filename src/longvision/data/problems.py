"""How a set tells what is wrong with it: how many, which, and what to do. A few of many are left out with a warning."""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from longvision.errors import MissingFileError, UserError

ABOUT_A_FILE = re.compile(r"(.+?)( (?:is|has|have|holds|cannot|does) .+)", re.DOTALL)
TOLERATED = 0.01  # share of a set: beyond it, what is left is not the set that was meant, unless the user says so
NAMED = 10


def listing(found: Sequence[str], between: str = ", ") -> str:
    """The first ten."""
    return between.join(found[:NAMED]) + (f"{between}…" if len(found) > NAMED else "")


def once_each(sentences: Iterable[str]) -> list[str]:
    """What is said of several files alike becomes one sentence, of the first, with the names of the others."""
    groups: dict[str, list[str]] = defaultdict(list)
    for sentence in sentences:
        found = ABOUT_A_FILE.fullmatch(sentence)
        groups[found[2] if found else sentence].append(found[1] if found else sentence)
    return [
        names[0] + (said if said != names[0] else "") + (f" (also {listing(names[1:])})" * (len(names) > 1))
        for said, names in groups.items()
    ]


def counted(count: int, what: str) -> str:
    """With the plural of the noun."""
    plural = (
        f"{what}es" if what.endswith("s") else f"{what.removesuffix('y')}ies" if what.endswith("ry") else f"{what}s"
    )
    return f"{count} {what if count == 1 else plural}"


def refuse(found: Sequence[str], problem: str, remedy: str) -> None:
    """Raises UserError when something was found: what is wrong, with which, and what to do about it."""
    if found:
        count = f" {len(found)} in all" * (len(found) > NAMED)
        raise UserError(f"{problem} ({listing(found)}{count}): {remedy}")


def refuse_many(found: Sequence[str], total: int, problem: str, tolerated: float = TOLERATED) -> None:
    """Warns of things that are left out; raises UserError when they are a larger share of all."""
    words = f"{len(found)} {problem} ({listing(found)})"
    if is_too_many(len(found), total, tolerated):
        raise UserError(f"{words}: correct or remove them, they are more than {percent(tolerated)}")
    if found:
        warnings.warn(f"{words}: they are left out", stacklevel=3)


def unreadable(reasons: Sequence[str], count: int, total: int, where: str) -> str:
    """In words: `count` of all the images, of which `reasons` tell some."""
    return f"{count} of {total} images in {where} cannot be read ({listing(once_each(reasons), '; ')})"


def too_many_unreadable(reasons: Sequence[str], count: int, total: int, where: str, tolerated: float) -> UserError:
    return UserError(
        f"{unreadable(reasons, count, total, where)}, more than {percent(tolerated)}: remove or replace them, or allow "
        "a larger share with --data.unreadable"
    )


def skipped_note(reasons: Sequence[str], total: int, where: str) -> str:
    """Of a few unreadable images that are met before they are loaded."""
    return f"{unreadable(reasons, len(reasons), total, where)}: they are skipped"


def is_too_many(bad: int, total: int, tolerated: float) -> bool:
    return bad > tolerated * total


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def is_gone(folder: str) -> bool:
    """Whether a folder that held a set is there no more, or is empty, as the place of a disk that is not mounted."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def require_folder(path: Path, remedy: str) -> None:
    """Raises UserError where there is none."""
    if not os.path.exists(path):  # also for a path too long for the system
        raise MissingFileError(f"{path} does not exist: {remedy}")
    if not path.is_dir():
        raise UserError(f"{path} is a file: {remedy}")
