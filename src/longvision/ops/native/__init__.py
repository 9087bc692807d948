"""Kernels in C++ for the CPU: compiled for this machine at their first use, kept for the next process."""

from longvision.ops.native.library import Library, address, kernels, pack, rows
from longvision.ops.native.memory import room

__all__ = ["Library", "address", "kernels", "pack", "room", "rows"]
