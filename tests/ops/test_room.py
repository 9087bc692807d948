"""Memory for what the kernels write: a tensor like any other, and given back when it goes."""

import mmap
import os

import pytest
import torch

from longvision.ops.native import memory, room

LARGE = memory.LARGE // 4  # float32 numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 5), (7,), (2, LARGE), (3, LARGE // 2 + 1, 5)], ids=str)
def test_it_is_a_tensor(shape, dtype):
    tensor = room(*shape, dtype=dtype)
    assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
    assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 and not tensor.requires_grad
    tensor.fill_(3)
    assert (tensor == 3).all() and torch.equal(tensor, tensor.clone())


@pytest.mark.parametrize("numbers", [LARGE - 1, LARGE])
def test_two_do_not_overlap(numbers):
    one, two = room(numbers, dtype=torch.float32).fill_(1), room(numbers, dtype=torch.float32).fill_(2)
    assert (one == 1).all() and (two == 2).all()


def test_a_view_keeps_it():
    view = room(4, LARGE, dtype=torch.float32).fill_(5)[3, -10:]
    others = [room(4, LARGE, dtype=torch.float32).fill_(6) for _ in range(3)]
    assert (view == 5).all() and len(others) == 3


@pytest.mark.skipif(memory.ADVICE is None, reason="mapped on Linux only")
def test_what_goes_is_given_back():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for _ in range(20):
        room(16, LARGE, dtype=torch.float32).fill_(1)  # 64 MiB
    assert resident() - before < 64 * 2**20


@pytest.mark.skipif(memory.ADVICE is None, reason="mapped on Linux only")
def test_without_large_pages(monkeypatch):
    class Small(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(memory.mmap, "mmap", Small)
    assert (room(2, LARGE, dtype=torch.float32).fill_(3) == 3).all()


def test_on_other_systems(monkeypatch):
    monkeypatch.setattr(memory, "ADVICE", None)
    assert room(2, LARGE, dtype=torch.float32).shape == (2, LARGE)
