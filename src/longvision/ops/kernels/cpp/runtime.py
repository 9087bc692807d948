"""The OpenMP runtime that torch runs on, known by its functions: GNU's, LLVM's or Intel's."""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

GNU = ("GOMP_parallel",)  # LLVM's and Intel's have it too, except on Windows
LLVM = ("__kmpc_fork_call", "__kmpc_global_thread_num", "__kmpc_push_num_threads")


def start_functions() -> bytes:
    """`Runtime` of threads.h, four addresses; 0 where there is no runtime: the kernels have threads of their own."""
    for library in _loaded():
        for names, before, behind in ((GNU, 0, len(LLVM)), (LLVM, len(GNU), 0)):
            found = [_address(library, name) for name in names]
            if all(found):
                return b"".join(
                    address.to_bytes(8, sys.byteorder) for address in [*[0] * before, *found, *[0] * behind]
                )
    return bytes(8 * len(GNU + LLVM))


def _loaded() -> Iterator[ctypes.CDLL]:
    """What the process sees first, as torch does (a runtime that was preloaded is before torch's own); then torch's."""
    if os.name == "posix":
        yield ctypes.CDLL(None)
    folder = Path(torch.__file__).parent
    for pattern in ("lib*omp*.so*", "lib*omp*.dylib", "lib*omp*.dll"):
        for path in sorted([*folder.glob(f"lib/{pattern}"), *folder.parent.glob(f"torch.libs/{pattern}")]):
            try:
                yield ctypes.CDLL(str(path), mode=getattr(os, "RTLD_NOLOAD", 0) | ctypes.DEFAULT_MODE)
            except OSError:
                continue


def _address(library: ctypes.CDLL, name: str) -> int:
    try:
        return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    except AttributeError:
        return 0
