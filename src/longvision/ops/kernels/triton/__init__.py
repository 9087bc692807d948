"""Kernels in Triton, for NVIDIA GPUs. Triton is imported when the first one is asked for, and not before."""

import functools
import importlib.util
import logging
import os

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # stored; inside all is float32


@torch.compiler.assume_constant_result
def available(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernels take such tensors here: on a CUDA device, or on the CPU in Triton's interpreter."""
    if dtype not in DTYPES:
        return False
    if device == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
    return device == "cuda" and torch.version.cuda is not None and _starts_kernels()


@functools.cache
def _starts_kernels() -> bool:
    """Whether Triton is there and can start kernels, for which it compiles a few lines of C once."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # whatever it lacks
        logging.getLogger("longvision").warning(
            "no Triton kernels on this GPU, plain torch computes the same more slowly: %s", " ".join(str(error).split())
        )
        return False
    return True
