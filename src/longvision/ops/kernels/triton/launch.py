"""How a kernel is started: on the device of its tensors."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

MOST_IN_A_ROW = 65_535  # programs along every axis of a grid but the first
# The next Triton fuses multiply-adds no more unless told. Loops are not pipelined: it takes registers that the kernels
# need, and the scans have nothing that Triton pipelines.
OPTIONS = {"enable_fp_fusion": True, "num_stages": 1}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 1, **constants: Any) -> None:
    """Starts `kernel`, a Triton function, with a program for each cell of `grid`.

    Lanes that exchange nothing are those of one warp, unless told.
    """
    if max(grid[1:], default=0) > MOST_IN_A_ROW:
        raise ValueError(
            f"{max(grid[1:])} images, or parts of a row, are more than a GPU starts at once, {MOST_IN_A_ROW}: "
            "split the batch, or the row"
        )
    # Offsets inside an image are numbers of 32 bits: with 64, a scan takes 8 % more instructions.
    for tensor in arguments:
        if isinstance(tensor, Tensor) and tensor.ndim == 3 and tensor.shape[1] * tensor.stride(1) >= 2**31:
            raise ValueError(
                f"{tensor.shape[1]} tokens in a row, {tensor.stride(1)} numbers each, are more than the kernels reach, "
                "2**31 numbers: split the row"
            )
    run(kernel, grid, arguments, warps, constants)


def rows(tensor: Tensor | None) -> tuple[Tensor | None, int, int]:
    """For a kernel: a (B, M, n) tensor, and how far apart its batches and its tokens are."""
    return (None, 0, 0) if tensor is None else (tensor, tensor.stride(0), tensor.stride(1))


def _run(kernel: Any, grid: tuple[int, ...], arguments: Sequence[Any], warps: int, constants: dict[str, Any]) -> None:
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    # Triton starts kernels on the current device, wherever the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, num_warps=warps, **OPTIONS)


run = _run  # replaced where kernels are compiled without a device
