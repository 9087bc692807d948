"""A checkpoint's file: what torch saved, and behind it a checksum of all that; or the folder of one in shards, in which
a list has the checksum of each file. Loads no torch but to make that list.

A reader of zip files, and torch is one, ignores what follows the last record.
"""

import hashlib
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from longvision.files import sync

MANIFEST = "manifest.json"
METADATA = ".metadata"  # in which torch writes where each tensor is
MARK = b"longvision sha256 "
SEAL = len(MARK) + hashlib.sha256().digest_size  # bytes
BLOCK = 1 << 20


def seal(path: Path) -> None:
    """Append the checksum."""
    with path.open("r+b") as file:
        file.write(MARK + _digest(file, path.stat().st_size))


def seal_folder(folder: Path) -> None:
    """When every device has written its share: wait for the disk, and list the files. Raises OSError where one is
    missing."""
    from torch.distributed.checkpoint import FileSystemReader

    # another machine's may be on the disk before they are seen in the folder
    shards = {each.relative_path for each in FileSystemReader(folder).read_metadata().storage_data.values()}
    names = shards.union(file.name for file in folder.iterdir()) - {MANIFEST}
    files = [folder / name for name in sorted(names)]
    for file in files:
        sync(file)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({file.name: _described(file) for file in files}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(folder)


def is_whole(checkpoint: Path) -> bool:
    """Whether every byte is as it was written, in a folder of every file."""
    try:
        if checkpoint.is_dir():
            listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
            is_list = isinstance(listed, dict) and METADATA in listed
            return is_list and all(_described(checkpoint / name) == about for name, about in listed.items())
        with checkpoint.open("rb") as file:
            digest = _digest(file, checkpoint.stat().st_size - SEAL)
            end = file.read()
    except (OSError, ValueError):  # no file; no list
        return False
    return end == MARK + digest if end.startswith(MARK) else _is_whole_zip(checkpoint)


def _described(file: Path) -> dict[str, int | str]:
    """What the list says of it."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        return {"bytes": size, "sha256": _digest(opened, size).hex()}


def _digest(file: BinaryIO, size: int) -> bytes:
    """Of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


def _is_whole_zip(path: Path) -> bool:
    """Of earlier versions, whose only checksums are those of the zip's records."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # a damaged header makes Python's reader raise anything
        return False


def replace_folder(beside: Path, path: Path, backup: Path | None = None) -> None:
    """As `files.replace_durably`, of folders; without a name for what was there it is removed.

    One folder cannot take the name of another at once: `put_back` is for a process that ended in between.
    """
    old = backup or _aside(path)
    if path.exists():
        remove(old)
        path.rename(old)
    beside.rename(path)
    sync(path.parent)
    if backup is None:
        remove(old)


def put_back(path: Path) -> None:
    """Give a folder its name again, where another was to take it and has not; remove it, where the other has."""
    with suppress(FileNotFoundError):  # none, or another process was first
        if path.exists():
            remove(_aside(path))
        else:
            _aside(path).rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".old-{path.name}")


def remove(path: Path) -> None:
    """A checkpoint of either kind, or what is left of one, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
