"""Which code computes an op."""

import os

import torch

from longvision.ops.native import available as has_cpu_kernels
from longvision.ops.triton import available as has_triton_kernels

BACKENDS = ("cpu", "triton", "chunked", "reference")
BACKEND_VARIABLE = "LONGVISION_SCAN_BACKEND"


def choose_backend(asked: str | None, device: str, dtype: torch.dtype) -> str:
    """The backend asked for by argument or environment variable, or the fastest for tensors of that kind."""
    name = asked or os.environ.get(BACKEND_VARIABLE)
    if not name:
        if has_cpu_kernels(device, dtype):
            return "cpu"
        return "triton" if device == "cuda" and has_triton_kernels(device, dtype) else "chunked"
    origin = "backend" if asked else BACKEND_VARIABLE
    if name not in BACKENDS:
        raise ValueError(f"{origin}={name!r} is not a selective-scan backend: choose one of {', '.join(BACKENDS)}")
    if name == "cpu" and not has_cpu_kernels(device, dtype):
        raise ValueError(
            f"{origin}='cpu' cannot take {dtype} on {device}: it needs a CPU, float32, float64 or bfloat16, and a C++ "
            "compiler; choose chunked"
        )
    if name == "triton" and not has_triton_kernels(device, dtype):
        raise ValueError(
            f"{origin}='triton' cannot take {dtype} on {device}: it needs an NVIDIA GPU, float32, bfloat16 or float16, "
            "and the package triton; choose chunked"
        )
    return name
