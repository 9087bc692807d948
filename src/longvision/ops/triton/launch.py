"""How a kernel is started: on the device of its tensors."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

# The next Triton fuses multiply-adds no more unless told. Loops are not pipelined: it takes registers that the kernels
# need, and the scans have nothing that Triton pipelines.
OPTIONS = {"enable_fp_fusion": True, "num_stages": 1}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 1, **constants: Any) -> None:
    """Starts `kernel`, a Triton function, with a program for each cell of `grid`."""
    run(kernel, grid, arguments, warps, constants)


def _run(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], warps: int, constants: dict[str, Any]) -> None:
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    # Triton starts kernels on the current device, wherever the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=warps, **OPTIONS)


run = _run  # replaced where kernels are compiled without a device
