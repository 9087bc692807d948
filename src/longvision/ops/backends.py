"""Which code computes an op."""

import os

import torch

from longvision.ops.kernels.cpp import available as has_cpu_kernels
from longvision.ops.kernels.cpp.library import DEFINITIONS as CPU_DTYPES
from longvision.ops.kernels.triton import DTYPES as TRITON_DTYPES
from longvision.ops.kernels.triton import available as has_triton_kernels

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
        needs = _lacking_cpu(device, dtype)
    elif name == "triton" and not has_triton_kernels(device, dtype):
        needs = _lacking_triton(device, dtype)
    else:
        return name
    raise ValueError(
        f"{origin}={name!r} cannot take {dtype} on {device}: it needs {needs}; without this choice the fastest that "
        "fits is taken"
    )


def _lacking_cpu(device: str, dtype: torch.dtype) -> str:
    lacking = [] if device == "cpu" else ["a CPU"]
    if dtype not in CPU_DTYPES:
        lacking.append("float32, float64 or bfloat16")
    return " and ".join(lacking) or "a C++ compiler"


def _lacking_triton(device: str, dtype: torch.dtype) -> str:
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    of_nvidia = device == "cuda" and torch.version.cuda is not None
    lacking = [] if interpreted or of_nvidia else ["an NVIDIA GPU"]
    if dtype not in TRITON_DTYPES:
        lacking.append("float32, bfloat16 or float16")
    return " and ".join(lacking) or "the package triton, able to start kernels here"
