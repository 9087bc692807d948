"""A set is listed, and its files are looked at, by one process of a machine; the others that train with it read what it
found, from a file beside the runs.

It lasts as long as the job: the next one, also one that goes on with a run, looks at the files themselves again.
"""

import atexit
import hashlib
import os
import pickle
import platform
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TypeVar

from longvision.errors import UserError, user_paths
from longvision.files import written_beside

HANDED_OVER = "LONGVISION_INDEX"  # where a process finds what the one that started it has found
PATIENCE = 3600  # seconds
PAUSE = 0.2
DAY = 24 * 3600

Found = TypeVar("Found")


def found_by_one(find: Callable[[], Found], folder: str | Path) -> Found:
    """`find()`, called by the first process of each machine alone, where torchrun or SLURM started several.

    Args:
        find: lists a set; what it gives may be pickled, or else each process calls it.
        folder: where runs are, of all processes.

    Raises:
        UserError: `find` failed in the first process; or that wrote nothing in an hour.
    """
    rank, handed_over = _rank(), os.environ.get(HANDED_OVER)
    if handed_over and rank not in (None, "0"):
        return _read(Path(handed_over), find)
    job = _job()
    if rank is None or job is None:
        return find()
    place = Path(folder) / f".index-{job}"
    if rank != "0":
        return _read(place, find)
    with user_paths():
        place.unlink(missing_ok=True)
    try:
        found = find()
    except BaseException as error:  # else the others would wait
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error}".strip()
        _write(place, f"the first process of {platform.node()} found no data to train on: {said}")
        raise
    _write(place, (found,))
    return found


def hand_over(found: object, folder: str | Path) -> None:
    """To the processes that this one is going to start, as Lightning's launcher does, unless it was started so."""
    if _rank() is not None:
        return
    place = Path(folder) / f".index-{platform.node()}-{os.getpid()}"
    _write(place, (found,))
    os.environ[HANDED_OVER] = str(place.resolve())


def _rank() -> str | None:
    """Among the processes of this machine; None where it was started alone."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID"))


def _job() -> str | None:
    """What all processes of this job on this machine, and no others, have in common; None where nothing is known."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:  # one process starts those of a machine
        parts = [environment["TORCHELASTIC_RUN_ID"], _parent(), environment.get("TORCHELASTIC_RESTART_COUNT")]
    elif "SLURM_STEP_ID" in environment:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        parts = [environment.get(name) for name in names]
    else:
        return None
    command = hashlib.blake2b(repr([parts, sys.argv[1:]]).encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{platform.node()}-{command.hexdigest()}"


def _parent() -> str:
    """The process that started this one, and where the system says so when it began: in a container that is started
    again, processes have the numbers that they had before."""
    parent = os.getppid()
    with suppress(OSError):
        return f"{parent}-{Path(f'/proc/{parent}/stat').read_bytes().rpartition(b')')[2].split()[19].decode()}"
    return str(parent)


def _write(place: Path, content: tuple[object] | str) -> None:
    """What was found, until this process ends; or why nothing was, which stays for processes that come later."""
    try:
        packed = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    except Exception:  # a source of somebody else's may hold anything
        packed = pickle.dumps(None)
    with user_paths():
        place.parent.mkdir(parents=True, exist_ok=True)
        for other in place.parent.glob(".index-*"):  # of processes that were killed
            with suppress(OSError):
                if other.stat().st_mtime < time.time() - DAY:
                    other.unlink()
        with written_beside(place, overwrite=True) as beside:
            beside.touch(0o600)
            beside.write_bytes(packed)
    if not isinstance(content, str):
        atexit.register(_remove, place, os.getpid())


def _remove(place: Path, process: int) -> None:
    if os.getpid() == process:  # no worker that was forked
        with suppress(OSError):
            place.unlink()


def _read(place: Path, find: Callable[[], Found]) -> Found:
    end = time.monotonic() + PATIENCE
    while not place.exists():
        if time.monotonic() > end:
            raise UserError(
                f"the first process of {platform.node()} wrote no list of the data to {place} in {PATIENCE} s: look at "
                "what it says, and give all processes of a machine the same --runs"
            )
        time.sleep(PAUSE)
    content = pickle.loads(_own_bytes(place))
    if isinstance(content, str):
        raise UserError(content)
    return find() if content is None else content[0]


def _own_bytes(place: Path) -> bytes:
    """Of a file that this user alone could write, for what somebody else put there could run anything. On a disk of a
    network root may have another name, and on some all files are everyone's: a file of its own tells. Raises UserError
    for another's, and for what is no file, without waiting for somebody to write into it."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with user_paths(), open(place, "rb", opener=lambda path, of_open: os.open(path, of_open | flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{place} is no file: remove it")
        if _owner(file) != (getattr(os, "getuid", lambda: 0)(), 0) and _owner(file) != _owner_of_new(place.parent):
            raise UserError(
                f"{place} is another user's, or one that others may write, and is not read: remove it, and give --runs "
                "a folder in which you alone can write"
            )
        return file.read()


def _owner(file: IO[bytes]) -> tuple[int, int]:
    """And who else may write it."""
    told = os.fstat(file.fileno())
    return told.st_uid, told.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _owner_of_new(folder: Path) -> tuple[int, int] | None:
    """Of a file that this process makes there; None where it may not."""
    try:
        with TemporaryFile(dir=folder) as own:
            return _owner(own)
    except OSError:
        return None
