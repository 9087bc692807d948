"""Which files of many images, Parquet or tar, hold which split."""

import os
import re
from collections import defaultdict
from pathlib import Path

from longvision.data.io.listing import ending, files_in, folders_in, list_files
from longvision.data.leftovers import unused
from longvision.data.problems import listing, require_folder
from longvision.data.sources.shard_names import check_shards, without_number
from longvision.data.splits import TRAINS, alike, choose, read_name
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

COMPRESSED = re.compile(r"(?i)(?P<name>.+)\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)")


def find_files(
    root: Path, notes: list[str], any_split: bool = False, suffix: str = ".parquet", beside: str | None = None
) -> dict[Split, list[Path]]:
    """The sorted files of each split, as `_find_files` or, for evaluation, `_find_any_files` says. Raises UserError,
    also for shards that are missing or there twice; numbers of tar files have no gaps. `beside` is
    a file that is used too."""
    used, is_tar = {os.path.realpath(beside)} if beside else set(), suffix == ".tar"
    if is_tar:
        _refuse_compressed(root)
    files = (_find_any_files if any_split else _find_files)(root, notes, suffix, used)
    notes += check_shards((path for paths in files.values() for path in paths), gaps=not is_tar)
    return files


def _refuse_compressed(root: Path) -> None:
    """Raises UserError for compressed tar files that are called as a split's, or that are there in place of others."""
    files: list[Path] = []
    for folder in filter(os.path.isdir, (root, root / "data")):
        files += [folder / name for name in files_in(folder)]
        files += [Path(file) for name in _splits_in(folder) for file in list_files(folder / name).files]
    packed = {file: found["name"] for file in files if (found := COMPRESSED.fullmatch(file.name))}
    if any(ending(file) == ".tar" for file in files):
        packed = {file: name for file, name in packed.items()
                  if file.parent not in (root, root / "data") or _split_of(without_number(name))}  # fmt: skip
    if packed:
        names = listing(sorted(file.relative_to(root).as_posix() for file in packed))
        raise UserError(
            f"{root} has compressed tar files ({names}), of which no image can be read by itself: unpack them to .tar, "
            "as with gunzip, or move away those that are not meant"
        )


def _find_files(root: Path, notes: list[str], suffix: str, used: set[str]) -> dict[Split, list[Path]]:
    """The sorted files of each split, in `root` or in `root`/data, by their names or by those of folders:
    train-00000-of-00002.parquet, train/0000.parquet. `notes` gets what is not used. Raises UserError."""
    require_folder(root, f"give the folder that holds train*{suffix}")
    for folder in (root, root / "data"):
        groups = _groups(folder, suffix) if folder.is_dir() else {}
        names = [name for name in groups if read_name(name).is_split]
        if not _train(names):  # mnist-train.parquet, mnist-test.parquet
            names = alike(groups) or [name for name in _train([*groups]) if len(_train([*groups])) == 1]
        if _train(names):
            chosen = choose(names, str(folder))
            files = {split: groups[name] for split, name in chosen.names.items()}
            notes += [*chosen.notes, *_not_used(root, folder, files, used)]
            return files
        if len(groups) == 1 and not _split_of(*groups):
            (paths,) = groups.values()
            notes.append(
                f"{folder} has {paths[0].name}, which is called as no split: a tenth of it validates, the rest trains"
            )
            notes += _not_used(root, folder, {"train": paths}, used)
            return {"train": sorted(paths)}
    elsewhere = sorted({str(Path(file).parent) for file in list_files(root).files if ending(file) == suffix})
    hint = f"; there are {suffix} files in {listing(elsewhere)}" if elsewhere else ""
    raise MissingFileError(f"no train*{suffix} in {root} or in {root / 'data'}: give the folder that holds it{hint}")


def _find_any_files(root: Path, notes: list[str], suffix: str, used: set[str]) -> dict[Split, list[Path]]:
    """For evaluation: the splits that there are, or else all files as "train". Raises UserError."""
    require_folder(root, f"give the folder that holds {suffix} files")
    for folder in (root, root / "data"):
        groups = _groups(folder, suffix) if folder.is_dir() else {}
        names = [name for name in groups if read_name(name).is_split] or [name for name in groups if _split_of(name)]
        if names:
            chosen = choose(names, str(folder))
            files = {split: groups[name] for split, name in chosen.names.items()}
            notes += [*chosen.notes, *_not_used(root, folder, files, used)]
            return files
        if groups:
            return {"train": sorted(path for paths in groups.values() for path in paths)}
    raise MissingFileError(f"no {suffix} file in {root} or in {root / 'data'}: give the folder that holds them")


def _split_of(name: str) -> bool:
    return read_name(name).reading is not None


def _splits_in(folder: Path) -> list[str]:
    return [name for name in folders_in(folder) if read_name(name).is_split]


def _groups(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """Shards by what they are called without their number; those in a split's folder by its name."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for name in files_in(folder):
        if ending(name) == suffix:
            groups[without_number(Path(name).stem)].append(folder / name)
    for name in _splits_in(folder):
        groups[name] += [Path(file) for file in list_files(folder / name).files if ending(file) == suffix]
    return {name: files for name, files in groups.items() if files}


def _train(names: list[str]) -> list[str]:
    return [name for name in names if read_name(name).reading in TRAINS]


def _not_used(root: Path, folder: Path, files: dict[Split, list[Path]], used: set[str]) -> list[str]:
    below = {path.relative_to(folder).parts[0] for paths in files.values() for path in paths}
    names = [name for name in files_in(folder) if name not in below and os.path.realpath(folder / name) not in used]
    lines = unused(folder, names, [name for name in folders_in(folder) if name not in below])
    if folder != root:
        lines += unused(root, files_in(root), [name for name in folders_in(root) if name != folder.name])
    return lines
