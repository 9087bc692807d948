"""Matmuls against float64: sizes around the tiles, transposed views, sums, one thread and two."""

import ctypes
import mmap
import sys

import pytest
import torch

from longvision.ops.kernels.cpp.library import kernels_for
from longvision.ops.kernels.cpp.record import pack
from support.scan_cases import needs_compiler

pytestmark = needs_compiler

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
SIZES = [
    (1, 1, 1),
    (1, 33, 5),
    (11, 31, 15),
    (12, 32, 16),
    (13, 33, 17),
    (49, 7, 256),
    (48, 64, 257),
    (5, 12, 1025),
    (13, 33, 2100),
    (197, 768, 192),
    (768, 192, 197),
    (100, 3, 0),
]


def matrix(rows, columns, dtype, transposed=False, gap=0):
    """With NaN around it, where a kernel must not look."""
    shape = (columns, rows + gap) if transposed else (rows, columns + gap)
    whole = torch.full(shape, torch.nan, dtype=dtype)
    part = whole[:, :rows].t() if transposed else whole[:, :columns]
    return part.copy_(torch.randn(rows, columns))


def matmul(left, right, add=None, out=None):
    """`Matmul` of matmul.h: (M, K) times (K, N), plus (M, N), into `out`, which may be what is added."""
    out = left.new_empty(left.shape[0], right.shape[1]) if out is None else out
    record = pack(
        *(*out.shape, left.shape[1], torch.get_num_threads()),
        *(left.data_ptr(), *left.stride()),
        *(right.data_ptr(), *right.stride()),
        *((0, 0) if add is None else (add.data_ptr(), add.stride(0))),
        *(out.data_ptr(), out.stride(0)),
    )
    kernels_for(left.dtype).matmul(record)
    return out


def error(result, truth):
    return ((result.double() - truth).norm() / truth.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "columns", "depth"), SIZES)
def test_against_float64(rows, columns, depth, dtype):
    torch.manual_seed(0)
    for left_turned, right_turned, gap in [(0, 0, 0), (0, 1, 3), (1, 0, 3), (1, 1, 0)]:
        left, right = matrix(rows, depth, dtype, left_turned, gap), matrix(depth, columns, dtype, right_turned, gap)
        add = matrix(rows, columns, dtype, gap=gap)
        truth = left.double() @ right.double()
        assert error(matmul(left, right), truth) <= TOLERANCE[dtype]
        assert error(matmul(left, right, add), truth + add.double()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_into_what_is_there(dtype):
    """Beside NaN that must stay, over NaN that must go, and over what is added."""
    left, right = torch.randn(50, 300, dtype=dtype), torch.randn(300, 45, dtype=dtype)
    around = torch.full((50, 60), torch.nan, dtype=dtype)
    out = around[:, 3:48]
    assert matmul(left, right, out=out) is out
    assert error(out, left.double() @ right.double()) <= TOLERANCE[dtype]
    assert around.isnan().sum() == 50 * 15
    before = out.double().clone()
    matmul(left, right, out, out=out)
    assert error(out, before + left.double() @ right.double()) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("rows", "columns", "depth"), SIZES)
def test_the_same_for_every_number_of_threads(rows, columns, depth):
    left, right = torch.randn(rows, depth), torch.randn(columns, depth).t()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(matmul(left, right))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def before_a_wall(rows, columns, dtype):
    """A matrix whose last number is the last that may be read: behind it lies a page that ends the process."""
    size = rows * columns * dtype.itemsize
    pages = mmap.mmap(-1, (size // mmap.PAGESIZE + 2) * mmap.PAGESIZE)
    wall = len(pages) - mmap.PAGESIZE
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + wall), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    matrix = torch.frombuffer(pages, dtype=dtype, count=rows * columns, offset=wall - size)
    return matrix.view(rows, columns).copy_(torch.randn(rows, columns))


@pytest.mark.skipif(sys.platform != "linux", reason="pages are protected with mprotect")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "columns", "depth"), [size for size in SIZES if size[2]])
def test_nothing_is_read_beyond_the_end(rows, columns, depth, dtype):
    left, right = before_a_wall(rows, depth, dtype), before_a_wall(depth, columns, dtype)
    left_turned, right_turned = before_a_wall(depth, rows, dtype).t(), before_a_wall(columns, depth, dtype).t()
    add = before_a_wall(rows, columns, dtype)
    for a in (left, left_turned):
        for b in (right, right_turned):
            assert error(matmul(a, b, add), a.double() @ b.double() + add.double()) <= TOLERANCE[dtype]


def test_infinity_and_nan_stay_in_their_rows():
    left, right = torch.randn(40, 50), torch.randn(50, 40)
    left[3, 4], left[30, 5] = torch.inf, torch.nan
    result, truth = matmul(left, right), left @ right
    assert torch.equal(result.isnan(), truth.isnan()) and torch.equal(result.isinf(), truth.isinf())
    assert result[[3, 30]].isfinite().sum() == 0
