"""Matmuls: in C++ (matmul.h) where the dtype of storage is that of arithmetic, else torch's."""

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.library import kernels
from longvision.ops.kernels.cpp.record import contiguous_channels, pack


def matmul(left_MK: Tensor, right_KN: Tensor, add_MN: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """(M, K) times (K, N), plus (M, N), into `out`, which may be what is added; all of one dtype, `out` with a
    contiguous last dimension.

    Transposed factors cost nothing, others without a dimension of stride 1 a copy. Torch's matmul is the faster one in
    bfloat16, where processors have instructions of their own.
    """
    rows, columns = left_MK.shape[0], right_KN.shape[1]
    if out is None:
        out = left_MK.new_empty(rows, columns)
    library = kernels(left_MK.dtype)
    if library is None or library.real != left_MK.dtype:
        if add_MN is None:
            return torch.mm(left_MK, right_KN, out=out)
        return torch.addmm(add_MN, left_MK, right_KN, out=out)
    left, right = _with_unit_stride(left_MK), _with_unit_stride(right_KN)
    add = None if add_MN is None else contiguous_channels(add_MN)
    assert left.shape[1] == right.shape[0] and left.dtype == right.dtype == out.dtype == library.real
    assert out.shape == (rows, columns) and contiguous_channels(out) is out
    assert add is None or (add.shape == out.shape and add.dtype == out.dtype)
    library.matmul(
        pack(
            *(rows, columns, left.shape[1], torch.get_num_threads()),
            *(left.data_ptr(), *left.stride()),
            *(right.data_ptr(), *right.stride()),
            *((0, 0) if add is None else (add.data_ptr(), add.stride(0))),
            *(out.data_ptr(), out.stride(0)),
        )
    )
    return out


def _with_unit_stride(matrix: Tensor) -> Tensor:
    return matrix if 1 in matrix.stride() else matrix.contiguous()
