"""Matmuls of numbers that are stored in another dtype than they are computed in: the backward hands them to torch.

Processors have instructions of their own for bfloat16, and torch knows them.
"""

import ctypes
import functools

import torch
from torch import Tensor

_alive: list[object] = []  # what C holds the addresses of


class _Matmul(ctypes.Structure):
    """`OutsideMatmul` of block.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("M", "N", "K", "left", "left_row", "left_column", "right", "right_row", "right_column", "to")
    ]


@functools.cache
def outside_matmul(dtype: torch.dtype) -> int:
    """The address of a C function; 0 for a dtype that needs none. It lives as long as the process."""
    if dtype != torch.bfloat16:
        return 0

    def run(call: "ctypes._Pointer[_Matmul]") -> int:
        of = call.contents
        left_MK = _view(of.left, (of.M, of.K), (of.left_row, of.left_column), dtype)
        right_KN = _view(of.right, (of.K, of.N), (of.right_row, of.right_column), dtype)
        to_MN = _view(of.to, (of.M, of.N), (of.N, 1), dtype)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if _multiplies_bfloat16():
                torch.mm(left_MK, right_KN, out=to_MN)
            else:
                to_MN.copy_(left_MK.float() @ right_KN.float())
        return 1  # after an exception, which ctypes tells of but does not hand on, it is 0

    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Matmul))(run)
    _alive.append(function)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether torch multiplies them well on this processor: on AVX2 it takes six times as long as in float32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _view(start: int, shape: tuple[int, int], strides: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The memory of somebody else as a matrix."""
    count = sum((n - 1) * stride for n, stride in zip(shape, strides)) + 1
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(start)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)
