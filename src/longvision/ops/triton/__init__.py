"""Kernels in Triton, for GPUs. Triton is imported when the first one is asked for, and not before."""

import functools
import importlib.util
import os

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # stored; inside all is float32


@torch.compiler.assume_constant_result
def available(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernels take such tensors here: on a CUDA device, or on the CPU in Triton's interpreter."""
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return dtype in DTYPES and (device == "cuda" or interpreted) and _installed()


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
