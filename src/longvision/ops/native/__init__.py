"""Kernels in C++ for the CPU: compiled for this machine at their first use, kept for the next process."""

from longvision.ops.native.library import Library, address, available, dense, dense_rows, double, kernels, pack, rows
from longvision.ops.native.memory import release_memory, room
from longvision.ops.native.product import product

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
