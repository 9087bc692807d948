"""Kernels in C++ for the CPU: compiled for this machine at their first use, kept for the next process."""

from longvision.ops.kernels.cpp.library import (
    Library,
    address,
    available,
    dense,
    dense_rows,
    double,
    kernels,
    pack,
    rows,
)
from longvision.ops.kernels.cpp.memory import release_memory, room
from longvision.ops.kernels.cpp.product import product

__all__ = [
    "Library",
    "address",
    "available",
    "dense",
    "dense_rows",
    "double",
    "kernels",
    "pack",
    "product",
    "release_memory",
    "room",
    "rows",
]
