"""Room for what the kernels write: large tensors are mapped on their own, in large pages.

Large tensors that come from the heap and go soon leave holes behind that smaller ones split: a training step with
checkpoints then holds more than twice the memory that it uses. And each costs a page fault for every 4 KiB, which
takes longer than what the kernels do with them.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor

LARGE = 2**22  # bytes: below, the heap is as good
PAGE = 2**21  # bytes of a large page: a mapping of a whole number of them begins at one
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


def room(*shape: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU; a large one gives its memory back to the system when it goes."""
    size = math.prod(shape) * dtype.itemsize
    if ADVICE is None or size < LARGE:
        return torch.empty(shape, dtype=dtype)
    pages = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(ADVICE, 0, round(size / PAGE) * PAGE)  # not for a rest that would leave most of its page unused
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)
