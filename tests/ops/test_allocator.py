"""Memory for what the kernels write: a tensor like any other, kept for the next of its size, and given back."""

import gc
import mmap
import os
import signal
import threading

import pytest
import torch

from longvision.layers import VimBlock
from longvision.ops import release_memory
from longvision.ops.kernels.cpp import allocator
from longvision.ops.kernels.cpp.allocator import cached_empty

LEAST = allocator.LEAST // 4  # float32 numbers
MIB = 2**18  # float32 numbers
on_linux = pytest.mark.skipif(allocator.ADVICE is None, reason="mapped on Linux only")


@pytest.fixture
def store(monkeypatch):
    """One of the test's own, which no other tensor is in; `store.maps` counts mappings made."""
    store = allocator._Store()
    monkeypatch.setattr(allocator, "_store", store)
    store.maps, make = 0, allocator._map

    def counted(*args):
        store.maps += 1
        return make(*args)

    monkeypatch.setattr(allocator, "_map", counted)
    return store


def tensor(mebibytes, number=1.0):
    return cached_empty(mebibytes, MIB, dtype=torch.float32).fill_(number)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 5), (7,), (2, LEAST), (3, LEAST // 2 + 1, 5), (3, MIB)], ids=str)
def test_it_is_a_tensor(shape, dtype):
    tensor = cached_empty(*shape, dtype=dtype)
    assert (tensor.shape, tensor.dtype, tensor.device.type) == (shape, dtype, "cpu")
    assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 and not tensor.requires_grad
    tensor.fill_(3)
    assert (tensor == 3).all() and torch.equal(tensor, tensor.clone())


@pytest.mark.parametrize("numbers", [LEAST - 1, LEAST, MIB])
def test_two_do_not_overlap(numbers):
    one, two = cached_empty(numbers, dtype=torch.float32).fill_(1), cached_empty(numbers, dtype=torch.float32).fill_(2)
    assert (one == 1).all() and (two == 2).all()


@on_linux
def test_what_goes_is_taken_again(store):
    for _ in range(5):
        tensor(3)
    assert store.maps == 1
    keep = [tensor(3, i) for i in range(3)]  # one of them from what is free
    assert store.maps == 3 and [t.mean().item() for t in keep] == [0, 1, 2]


@on_linux
def test_a_view_keeps_it(store):
    view = tensor(2, 5)[1, -10:]
    others = [tensor(2, 6) for _ in range(3)]
    assert (view == 5).all() and store.maps == 4 and len(others) == 3


@on_linux
def test_no_more_is_held_than_was_used_at_once(store):
    """Sizes that never come again, as of images of many sizes: what they left goes as others need memory."""
    for size in range(2, 60, 2):
        tensor(size)
        assert store.used + store.unused <= allocator.SLACK * store.most
    assert store.most == 58 * 2**20 and store.unused < 40 * 2**20


@on_linux
def test_the_sizes_of_one_pass_all_stay(store):
    """None of them at the same time as another, as within a block, and the largest no larger than their sum."""
    for _ in range(3):
        first = tensor(4)
        for size in (2, 2, 2):
            tensor(size)
        del first
    assert store.maps == 2


@on_linux
def test_what_was_used_long_ago_goes(store, monkeypatch):
    monkeypatch.setattr(allocator, "PERIOD", 10)
    together = [tensor(10) for _ in range(4)]
    del together
    for _ in range(30):
        tensor(2)
    assert store.used + store.unused <= allocator.SLACK * 2 * 2**20


@on_linux
def test_release(store):
    kept = tensor(2, 7)
    for _ in range(2):
        tensor(4)
    release_memory()
    assert (store.unused, store.used, store.most) == (0, 2 * 2**20, 2 * 2**20) and (kept == 7).all()
    tensor(4)
    assert store.maps == 3


@on_linux
def test_without_memory_what_is_unused_goes_first(store, monkeypatch):
    whole = [tensor(4) for _ in range(3)]
    del whole[:2]
    real = allocator._map

    def scarce(length, size):
        if length > 16 * 2**20 or store.unused:
            raise OSError(12, "Cannot allocate memory")
        return real(length, size)

    monkeypatch.setattr(allocator, "_map", scarce)
    assert (tensor(6, 2) == 2).all() and store.unused == 0
    assert (tensor(32, 3) == 3).all()  # from the heap
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        tensor(2**32)
    store._collect()
    assert (store.used, store.most) == (4 * 2**20, 12 * 2**20)  # of what is left of `whole`; of all of it


@on_linux
def test_a_fork_while_another_thread_takes(store):
    """What is true while a fork happens is true in the child for ever, such as that somebody holds the lock."""
    with store.lock:
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            os._exit(0 if (tensor(4, 1) == 1).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
@on_linux
def test_threads(store):
    """What one thread's tensors leave serves another's, and nobody's numbers change under them."""
    wrong = []

    def work(number):
        for i in range(60):
            mine = cached_empty(LEAST + number % 2, dtype=torch.float32).fill_(number)
            if i % 20 == 0:
                gc.collect()
            if not (mine == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store._collect()
    assert not wrong and store.used == 0 and store.maps <= 12  # two at once a thread


@on_linux
def test_training_maps_once(store):
    """Each step finds the memory of the step before; gradients, which outlive it, are not in it."""
    blocks = torch.nn.Sequential(*(VimBlock(128) for _ in range(3)))
    settled = []
    for _ in range(4):
        blocks(torch.randn(1, 700, 128)).square().mean().backward()
        settled.append(store.maps)
    assert 0 < settled[1] == settled[-1]
    store._collect()
    assert store.used == 0


@on_linux
def test_without_large_pages(monkeypatch, store):
    class Small(mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(allocator.mmap, "mmap", Small)
    assert (tensor(4, 3) == 3).all()


def test_on_other_systems(monkeypatch):
    monkeypatch.setattr(allocator, "ADVICE", None)
    assert cached_empty(2, MIB, dtype=torch.float32).shape == (2, MIB)


@on_linux
@pytest.mark.parametrize("value, mapped", [("torch", 0), ("", 1), (None, 1)])
def test_it_can_be_turned_off(monkeypatch, store, value, mapped):
    monkeypatch.delenv("LONGVISION_ALLOC", raising=False)
    if value is not None:
        monkeypatch.setenv("LONGVISION_ALLOC", value)
    allocator._is_on.cache_clear()
    assert tensor(3, 2).mean() == 2 and store.maps == mapped


@on_linux
def test_an_unknown_allocator_is_named(monkeypatch):
    monkeypatch.setenv("LONGVISION_ALLOC", "jemalloc")
    allocator._is_on.cache_clear()
    with pytest.raises(ValueError, match="LONGVISION_ALLOC='jemalloc'"):
        tensor(3)


@pytest.fixture(autouse=True)
def _asked_again():
    """Whether it is on is asked once a process: again behind each test."""
    yield
    allocator._is_on.cache_clear()
