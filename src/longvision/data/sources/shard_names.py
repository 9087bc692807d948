"""Files that are parts of one split, by their numbers: train-00000-of-00002.parquet, train-0007.tar."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from longvision.data.problems import counted, listing
from longvision.errors import UserError

# train-00000-of-00002-0123456789abcdef
SHARD = re.compile(r"[-_.]*(?P<number>\d+)(-of-(?P<total>\d+))?(-[0-9a-f]{6,})?$")

FIRST_YEAR = 1900  # train2017.tar


def without_number(name: str) -> str:
    """What the shards of one split are all called."""
    return SHARD.sub("", name)


def check_shards(files: Iterable[Path], gaps: bool = True) -> list[str]:
    """-> what is to be told: a row whose numbers do not begin with 0.

    Raises UserError for shards that say how many they are, where one is missing, there twice, or of another number of
    shards; unless `gaps` are allowed, also where a number is left out of those that do not say so.
    """
    notes, groups = [], defaultdict[tuple[Path, str], list[Path]](list)
    for file in files:
        groups[file.parent, without_number(file.stem)].append(file)
    for several in groups.values():
        numbers = {file: found for file in several if (found := SHARD.search(file.stem))}
        totals = {int(found["total"]) if found["total"] else None for found in numbers.values()}
        totals |= {None} if len(numbers) < len(several) else set()
        if len(totals) > 1:
            names = listing(sorted(file.name for file in several))
            raise UserError(f"{several[0].parent} has shards of more than one set ({names}): keep those of one")
        (total,) = totals
        if total is not None or not gaps:
            _check_numbers({file: int(found["number"]) for file, found in numbers.items()}, total)
        if total is None and not gaps:
            notes += _begins_late({int(found["number"]): file for file, found in numbers.items()})
    return notes


def _begins_late(files: dict[int, Path]) -> list[str]:
    """The line, or none, for a row that may have lost its first shards; a number alone may be a year."""
    first = min(files, default=0)
    if not first or (len(files) == 1 and first >= FIRST_YEAR):
        return []
    return [
        f"the shards {files[first].parent}/{without_number(files[first].stem)}* begin with number {first} "
        f"({files[first].name}): if there were any before it, they are missing"
    ]


def _check_numbers(numbers: dict[Path, int], total: int | None) -> None:
    """`total` is how many there are to be; None where they do not say it, and the highest is the last."""
    if not numbers:
        return
    folder, name = next((file.parent, without_number(file.stem)) for file in numbers)
    times = Counter(numbers.values())
    if twice := sorted(file.name for file, number in numbers.items() if times[number] > 1):
        raise UserError(f"{folder} has shards of the same number ({listing(twice)}): keep one of each")
    if total is None:
        first, last = min(times), max(times)
    else:
        first = int(total in times)  # some count from 1
        last = first + total - 1
    if outside := sorted(file.name for file, number in numbers.items() if not first <= number <= last):
        raise UserError(f"{folder} has shards beyond the last of {total} ({listing(outside)}): keep those of one set")
    if missing := [number for number in range(first, last + 1) if number not in times]:
        words = listing([str(number) for number in missing])
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{counted(len(missing), 'shard')} of {folder}/{name}* {verb} missing "
            f"(number {words} of {first} to {last}): restore them"
        )
