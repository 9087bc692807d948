"""Memory for what the kernels write: for each tensor a mapping, in large pages, kept for the next of its size.

LONGVISION_ALLOC=torch turns it off: torch's own allocator, or one that was preloaded, then serves every tensor.

From the heap, tensors of these sizes cost a page fault for every 4 KiB each time they are made, which at times takes
longer than what the kernels do with them; and as some go soon and some stay, they leave holes that nothing fits.
"""

import contextlib
import functools
import math
import mmap
import os
import threading
import weakref
from collections import deque

import torch
from torch import Tensor

LEAST = 2**16  # bytes: below, the heap is as good
SMALL_PAGE, LARGE_PAGE = 2**12, 2**21  # bytes; a mapping of a whole number of large pages begins at one
VARIABLE = "LONGVISION_ALLOC"
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux
PERIOD = 4096  # tensors made: in a pass over 24 blocks, forward and back, there are about 500
SLACK = 1.5  # times the most that was in use at once; the sizes of a block's tensors, not all of them needed at once


def cached_empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, not to be resized. Its memory then waits for the next tensor of its size."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST or ADVICE is None or not _is_on():
        return torch.empty(shape, dtype=dtype)
    owner = _store.take(size)  # the tensor's storage holds it
    if owner is None:
        return torch.empty(shape, dtype=dtype)  # torch says it, if there is no memory
    return torch.frombuffer(owner, dtype=dtype, count=math.prod(shape)).view(shape)


@functools.cache  # asked for every tensor
def _is_on() -> bool:
    chosen = os.environ.get(VARIABLE, "")
    if chosen not in ("", "torch"):
        raise ValueError(f"{VARIABLE}={chosen!r} is unknown: set it to torch, or not at all")
    return not chosen


def release_memory() -> None:
    """Give back to the system what the operators keep for later, as `torch.cuda.empty_cache` does on a GPU.

    Memory of results that were freed waits for the next call of the same size, so that a loop over images runs at full
    speed. All in all, results included, it is never more than 1.5 times what results lately took at once. To be called
    where a process has seen its last image and goes on with something else.
    """
    _store.release()


class _Store:
    """Mappings that no tensor uses now, by length.

    Used and unused ones together take at most SLACK times what the used ones took at once, in this period or the last.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: dict[int, list[mmap.mmap]] = {}  # the length used last comes last
        self.watched: dict[int, weakref.ref] = {}  # a reference itself has no hash
        # A tensor may go at any moment, also while the lock is held: it only leaves word here.
        self.returned: deque[mmap.mmap] = deque()
        self.used = self.unused = 0  # bytes
        self.made = self.most = self.most_before = 0  # tensors in this period; the most bytes used in it and before it

    def take(self, size: int) -> memoryview | None:
        """-> writable bytes, at least so many; when they go, their mapping is free again. None: there are none."""
        page = SMALL_PAGE if size < LARGE_PAGE else LARGE_PAGE
        length = -(-size // page) * page
        with self.lock:
            self._collect()
            same = self.free.pop(length, [])
            if same:
                pages = same.pop()
                self.unused -= length
                self.free[length] = same
            else:
                used = self.used + length
                self._shrink(SLACK * max(self.most, self.most_before, used) - used)
                mapped = self._map(length, size)
                if mapped is None:
                    return None
                pages = mapped
            self._count(length)
        owner = memoryview(pages)
        self._watch(owner, pages)
        return owner

    def release(self) -> None:
        with self.lock:
            self._collect()
            self._shrink(0)
            self.most = self.most_before = self.used

    def _map(self, length: int, size: int) -> mmap.mmap | None:
        """None where there is no memory left, or no mapping (Linux gives a process 65530)."""
        with contextlib.suppress(OSError):
            return _map(length, size)
        self._shrink(0)
        with contextlib.suppress(OSError):
            return _map(length, size)
        return None

    def _count(self, length: int) -> None:
        self.used += length
        self.most = max(self.most, self.used)
        self.made += 1
        if self.made == PERIOD:
            self.made, self.most_before, self.most = 0, self.most, self.used
            self._shrink(SLACK * self.most_before - self.used)

    def _collect(self) -> None:
        while self.returned:
            pages = self.returned.popleft()
            self.used -= len(pages)
            self.unused += len(pages)
            self.free.setdefault(len(pages), []).append(pages)

    def _shrink(self, most: float) -> None:
        """Give unused mappings back until they take no more than that."""
        while self.unused > most:
            length = next(iter(self.free))
            mappings = self.free[length]
            if mappings:
                mappings.pop()
                self.unused -= length
            else:
                del self.free[length]

    def _watch(self, owner: memoryview, pages: mmap.mmap) -> None:
        def returned(reference: weakref.ref) -> None:
            del self.watched[id(reference)]
            self.returned.append(pages)

        reference = weakref.ref(owner, returned)
        self.watched[id(reference)] = reference


_store = _Store()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: setattr(_store, "lock", threading.Lock()))  # its holder is not there


def _map(length: int, size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    large = round(size / LARGE_PAGE) * LARGE_PAGE  # not for a rest that would leave most of a large page unused
    if ADVICE is not None and large:
        with contextlib.suppress(OSError):  # a kernel without large pages
            pages.madvise(ADVICE, 0, large)
    return pages
