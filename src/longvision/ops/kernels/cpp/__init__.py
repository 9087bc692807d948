"""Kernels in C++ for the CPU: compiled for this machine at their first use, kept for the next process."""
