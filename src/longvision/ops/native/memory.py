"""Room for what the kernels write: memory of its own for each large tensor, in large pages, used again.

From the heap, tensors of these sizes cost a page fault for every 4 KiB each time they are made, which at times takes
longer than what the kernels do with them; and as some go soon and some stay, they leave holes that nothing fits.
"""

import contextlib
import math
import mmap
import threading
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Variable

LARGE = 2**22  # bytes: below, the heap is as good for a tensor that is made once
REUSED = 2**16  # bytes: and below that for one that is made again and again
SMALL_PAGE, LARGE_PAGE = 2**12, 2**21  # bytes; a mapping of a whole number of large pages begins at one
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


def room(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU. Its memory goes, with it, to the next one of its size or to the system."""
    pool = _threads.pool
    size = math.prod(shape) * dtype.itemsize
    if ADVICE is None or size < (LARGE if pool is None else REUSED):
        return torch.empty(shape, dtype=dtype)
    page = SMALL_PAGE if size < LARGE_PAGE else LARGE_PAGE
    length = -(-size // page) * page
    pages = _map(length, size) if pool is None else pool.take(length, size)
    owner = memoryview(pages)  # lives as long as the tensor's storage
    if pool is not None:
        pool.watch(owner, pages)
    return torch.frombuffer(owner, dtype=dtype, count=math.prod(shape)).view(shape)


@contextlib.contextmanager
def reused_memory() -> Iterator[None]:
    """Within it, this thread's tensors get memory that others had before; at its end what is free is given back."""
    outer, _threads.pool = _threads.pool, _Pool()
    try:
        yield
    finally:
        _threads.pool.close()
        _threads.pool = outer


def reuse_memory_in_backward() -> None:
    """Called within a backward pass: `reused_memory` until the pass is over."""
    task = torch._C._current_graph_task_id()
    if task == _threads.backward:
        return
    if _threads.pool is not None:  # of a pass that failed
        _threads.pool.close()
    _threads.backward, _threads.pool = task, _Pool()
    Variable._execution_engine.queue_callback(_end_of_backward)


def _end_of_backward() -> None:
    if _threads.pool is not None:
        _threads.pool.close()
    _threads.backward, _threads.pool = -1, None


class _Pool:
    """Mappings that no tensor uses now, by length."""

    def __init__(self) -> None:
        self.free: dict[int, list[mmap.mmap]] = {}
        self.watched: dict[int, weakref.ref] = {}  # a reference itself has no hash
        self.closed = False

    def take(self, length: int, size: int) -> mmap.mmap:
        same = self.free.get(length)
        return same.pop() if same else _map(length, size)

    def watch(self, owner: memoryview, pages: mmap.mmap) -> None:
        """When the owner goes, its pages are free."""

        def freed(reference: weakref.ref) -> None:
            del self.watched[id(reference)]
            if not self.closed:
                self.free.setdefault(len(pages), []).append(pages)

        reference = weakref.ref(owner, freed)
        self.watched[id(reference)] = reference

    def close(self) -> None:
        self.closed = True
        self.free.clear()


class _Threads(threading.local):
    pool: _Pool | None = None
    backward = -1  # the pass that the pool belongs to


_threads = _Threads()


def _map(length: int, size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    large = round(size / LARGE_PAGE) * LARGE_PAGE  # not for a rest that would leave most of a large page unused
    if ADVICE is not None and large:
        with contextlib.suppress(OSError):  # a kernel without large pages
            pages.madvise(ADVICE, 0, large)
    return pages
