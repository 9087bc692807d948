"""Kernels in C++ for the CPU: compiled for this machine at their first use, kept for the next process."""

from longvision.ops.native.library import Library, address, dense, double, kernels, pack, rows
from longvision.ops.native.memory import reuse_memory_in_backward, reused_memory, room

__all__ = [
    "Library",
    "address",
    "dense",
    "double",
    "kernels",
    "pack",
    "reuse_memory_in_backward",
    "reused_memory",
    "room",
    "rows",
]
