"""Records, which the kernels in C++ are called with: numbers and addresses, and tensors as those can be read."""

import functools
import struct

import torch
from torch import Tensor


def pack(*fields: int) -> bytes:
    """A record of 8-byte fields."""
    return _record(len(fields)).pack(*fields)


@functools.cache
def _record(fields: int) -> struct.Struct:
    return struct.Struct(f"={fields}q")


@functools.cache
def double(value: float) -> int:
    """As a field of a record."""
    return int(struct.unpack("=q", struct.pack("=d", value))[0])


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def contiguous(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, in that dtype: itself where it is so, which is asked first since converting takes longer."""
    if parameter.dtype == dtype and parameter.is_contiguous():
        return parameter
    return parameter.to(dtype).contiguous()


def contiguous_channels(tensor: Tensor) -> Tensor:
    """With a contiguous last dimension: itself where it has one."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def by_channel(tensor: Tensor) -> bool:
    """Whether a (B, M, n) tensor has its tokens beside each other, and not its channels: a (B, n, M) transposed.

    One that is expanded over its channels has not: to the kernels a stride of 0 says that channels are contiguous.
    """
    return tensor.stride(1) == 1 and tensor.stride(2) > 1 and tensor.shape[1] > 1 and tensor.shape[2] > 1


def rows(tensor: Tensor | None) -> tuple[int, int, int, int]:
    """`Rows` of rows.h: address and strides of a (B, M, n) tensor whose channels or tokens are contiguous; zeros for
    none."""
    if tensor is None:
        return 0, 0, 0, 0
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2) if by_channel(tensor) else 0
