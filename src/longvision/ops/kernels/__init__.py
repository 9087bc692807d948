"""Compiled kernels: C++ for CPUs, Triton for GPUs."""
