"""Which row of a table of labels is in which split: by a column, by its table's name, or by its image's folder."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import PurePosixPath

from longvision.data.problems import listing
from longvision.data.sources.label_columns import LabelRow, LabelTable
from longvision.data.splits import SAID, Chosen, choose, read_name
from longvision.errors import UserError
from longvision.types import Split


def by_split(
    tables: Sequence[tuple[Split | None, LabelTable]], where: str, notes: list[str], evaluates: bool
) -> dict[Split, list[LabelRow]]:
    """The rows of each split. Where nothing says it all are "train". Raises UserError for what is not certain; without
    training images too, unless it `evaluates`."""
    named = {split: table for split, table in tables if split}
    if named:
        if with_column := [table.file.name for table in named.values() if table.has_splits]:
            raise UserError(f"{where}: {listing(with_column)} is called as a split and has a column of them: keep one")
        found = {split: table.rows for split, table in named.items()}
    else:
        table = tables[0][1]
        found = _by_names(table.rows, where, notes) if table.has_splits else _by_folders(table.rows, where, notes)
    ordered: dict[Split, list[LabelRow]] = {split: found[split] for split in SAID if split in found}
    if "train" not in ordered and not evaluates:
        raise UserError(f"{where} has {listing([SAID[split] for split in ordered])} images and none to train on")
    return ordered


def _by_names(rows: Sequence[LabelRow], where: str, notes: list[str]) -> dict[Split, list[LabelRow]]:
    groups = defaultdict(list)
    for row in rows:
        if not read_name(row.split).is_split:
            raise UserError(f"{row.place}: its split is {row.split!r}: expected train, val or test")
        groups[row.split].append(row)
    return _chosen(choose(groups, where), groups, notes)


def _by_folders(rows: Sequence[LabelRow], where: str, notes: list[str]) -> dict[Split, list[LabelRow]]:
    """By the first folder of images' paths, where it says a split of each."""
    groups = defaultdict(list)
    for row in rows:
        folders = PurePosixPath(row.image.replace("\\", "/")).parts[:-1]
        groups[next((part for part in folders if read_name(part).is_split), "")].append(row)
    if "" not in groups and len(groups) > 1:
        notes.append(f"{where}: splits are those of the images' folders ({listing(sorted(groups))})")
        return _chosen(choose(groups, where), groups, notes)
    if len(groups) > 1:
        first = groups[""][0]
        said = sorted(name for name in groups if name)
        raise UserError(f"{first.place}: {first.image} is in no split, others in {listing(said)}: add a column split")
    return {"train": list(chain.from_iterable(groups.values()))}


def _chosen(chosen: Chosen, groups: dict[str, list[LabelRow]], notes: list[str]) -> dict[Split, list[LabelRow]]:
    notes += chosen.notes
    notes += [f"{len(groups[name])} images of {name} are not used" for name in chosen.left]
    return {split: groups[name] for split, name in chosen.names.items()}
