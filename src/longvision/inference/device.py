"""Where a model computes. A word is checked before torch is loaded, whether there is such a device after it."""

import re
from typing import TYPE_CHECKING, Any

from longvision.errors import UserError

if TYPE_CHECKING:
    import torch


def check_device(device: str) -> None:
    """Raises UserError for a word that names no device."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise UserError(f"device {device!r} is unknown: expected cpu, cuda, cuda:N for the GPU of number N, or mps")


def find_device(device: Any = None) -> "torch.device":
    """A word or torch.device -> the device; None -> CUDA where there is a GPU, else the CPU. Raises UserError."""
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(str(device))
    found = torch.device(device)
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device}: torch sees {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device mps: torch sees no Apple GPU")
    return found
