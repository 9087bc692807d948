"""Peak memory of a call, and a limit on what a process may take."""

import contextlib
import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from longvision.ops import release_memory

STATUS, CLEAR_REFS, MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
CGROUPS = (  # what a container may take, and has taken: version 2, version 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
T = TypeVar("T")


def measure_peak(call: Callable[[], T], device: str) -> tuple[T, int | None]:
    """-> what the call returns, and by how many bytes memory rose above its state before, at most.

    On CUDA what torch's allocator handed out; on a CPU the resident set of the process, which counts what any library
    takes. None where the system cannot tell: only Linux lets a process reset its high-water mark.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        return result, torch.cuda.max_memory_allocated() - before
    start = _reset_high_water_mark()
    result = call()
    return result, None if start is None else max(0, _status("VmHWM") - start)


def _reset_high_water_mark() -> int | None:
    """-> the resident set in bytes, which is now the high-water mark too; None where that cannot be had."""
    gc.collect()
    release_memory()
    _trim_heap()
    try:
        CLEAR_REFS.write_text("5", "utf-8")
        start = _status("VmRSS")
        reset = _status("VmHWM") - start < 2**20
    except OSError:
        return None
    return start if reset else None


def _trim_heap() -> None:
    """What was freed but kept for later would be taken again without being seen."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    return _kilobytes(STATUS, name)


def _kilobytes(path: Path, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", path.read_text("utf-8"), re.MULTILINE)
    if match is None:
        raise OSError(f"{path} has no {name}")
    return 1024 * int(match[1])


def limit_memory(allowed: int | None = None) -> None:
    """Let this process take `allowed` bytes more, by default 85 % of what is free, and fail beyond.

    Without it the system ends a process that takes too much, or another one. The limit is on private writable memory
    (RLIMIT_DATA), not on addresses, of which CUDA reserves many times the machine's memory. Linux only.
    """
    if not sys.platform.startswith("linux"):
        return
    import resource

    try:
        taken = _status("VmData")
        allowed = int(0.85 * available_memory()) if allowed is None else allowed
    except OSError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [taken + allowed, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def available_memory() -> int:
    """Bytes that can be taken without swapping, on the machine and in this container."""
    free = [_kilobytes(MEMINFO, "MemAvailable")]
    for most, current in CGROUPS:
        try:
            free.append(int(Path(most).read_text("utf-8")) - int(Path(current).read_text("utf-8")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return max(0, min(free))
