"""The folder for what is made once and used again: compiled kernels, what was read out of large files."""

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CACHE_VARIABLE = "LONGVISION_CACHE"
UNUSED = 30 * 24 * 3600  # seconds, after which what was read out of files is removed


def user_cache() -> Path | None:
    """LONGVISION_CACHE, or the user's cache folder; None where there is neither."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    try:
        return Path(base).expanduser() / "longvision"
    except RuntimeError:  # no home
        return None


def place_of(kind: str, files: Sequence[Path], about: object, suffix: str) -> Path | None:
    """Where what is read out of these files, as they are now, is kept: in the folder `kind` of the cache, under a name
    of which the part before the dash is that of the same files in any state. None where there is no cache."""
    folder = user_cache()
    if folder is None:
        return None
    # programs that make the same file of the same content set its time of modification, not the one of its change
    states = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in map(os.stat, files)]
    which, state = (hashlib.blake2b(repr(one).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
                    for one in (([str(file.resolve()) for file in files], about), states))  # fmt: skip
    return folder / kind / f"{which}-{state}{suffix}"


def mark_used(place: Path) -> None:
    with suppress(OSError):  # a cache that cannot be written
        os.utime(place)


def remove_stale(place: Path) -> None:
    """What was kept of other states of the same files, and what nobody has used for long."""
    before = time.time() - UNUSED
    for other in place.parent.glob(f"*{place.suffix}"):
        with suppress(OSError):
            if other.name.startswith(place.name.split("-")[0]) or other.stat().st_mtime < before:
                other.unlink()
