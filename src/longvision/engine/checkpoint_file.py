"""A checkpoint's file: what torch saved, and behind it a checksum of all that. Loads no torch.

A reader of zip files, and torch is one, ignores what follows the last record.
"""

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import BinaryIO

MARK = b"longvision sha256 "
SEAL = len(MARK) + hashlib.sha256().digest_size  # bytes
BLOCK = 1 << 20


def seal(path: Path) -> None:
    """Append the checksum."""
    with path.open("r+b") as file:
        file.write(MARK + _digest(file, path.stat().st_size))


def is_whole(checkpoint: Path) -> bool:
    """Whether every byte is as it was written; of a folder that several devices wrote, whether all of it is there."""
    if checkpoint.is_dir():
        return (checkpoint / ".metadata").is_file()  # which is written when every device has written its share
    try:
        with checkpoint.open("rb") as file:
            digest = _digest(file, checkpoint.stat().st_size - SEAL)
            end = file.read()
    except OSError:
        return False
    return end == MARK + digest if end.startswith(MARK) else _is_whole_zip(checkpoint)


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
    """As `files.replace_durably`, of folders; without a name for what was there it is removed."""
    old = backup or path.with_name(f".old-{path.name}")
    if path.exists():
        if old.exists():
            shutil.rmtree(old)
        path.rename(old)
    beside.rename(path)
    if backup is None and old.exists():
        shutil.rmtree(old)
