"""Kernels in C++ for the CPU: compiled for this machine at their first use, kept for the next process."""

from longvision.ops.kernels.cpp.allocator import cached_empty, release_memory
from longvision.ops.kernels.cpp.library import (
    Library,
    address,
    available,
    contiguous,
    contiguous_channels,
    double,
    kernels,
    kernels_for,
    pack,
    rows,
)
from longvision.ops.kernels.cpp.matmul import matmul

__all__ = [
    "Library",
    "address",
    "available",
    "cached_empty",
    "contiguous",
    "contiguous_channels",
    "double",
    "kernels",
    "kernels_for",
    "matmul",
    "pack",
    "release_memory",
    "rows",
]
