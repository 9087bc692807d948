"""Peak memory of a call, told apart from what was there before and what came one after the other."""

import sys

import pytest
import torch

from longvision.benchmark.memory import available_memory, measure_peak
from longvision.errors import is_out_of_memory
from support.forked import Forked

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets the high-water mark")
FLOATS = 50_000_000  # 200 MB


@linux
def test_a_tensor_of_known_size():
    result, peak = measure_peak(lambda: torch.ones(FLOATS).sum().item(), "cpu")
    assert result == FLOATS
    assert peak == pytest.approx(4 * FLOATS, rel=0.05)


@linux
def test_one_after_the_other_is_not_both():
    def call():
        for _ in range(3):
            torch.ones(FLOATS)

    assert measure_peak(call, "cpu")[1] == pytest.approx(4 * FLOATS, rel=0.05)


@linux
def test_both_at_once_are():
    peak = measure_peak(lambda: (torch.ones(FLOATS // 2), torch.ones(FLOATS // 2)), "cpu")[1]
    assert peak == pytest.approx(4 * FLOATS, rel=0.05)


WITH_SOME_THERE = f"""
import torch
from longvision.benchmark.memory import measure_peak
before = torch.ones({FLOATS})
torch.ones(2 * {FLOATS})  # an earlier and higher mark
print(measure_peak(lambda: torch.ones({FLOATS} // 10), "cpu")[1])
"""


@linux
def test_what_was_there_before_is_not_counted(tmp_path):
    """In a process of its own: what other tests leave may go in the meantime."""
    done = Forked(tmp_path, WITH_SOME_THERE).wait()
    assert int(done.stdout) == pytest.approx(4 * FLOATS / 10, rel=0.05), done.stderr


@linux
def test_small_pieces_that_the_heap_had_kept_are_counted():
    def call():
        return [torch.ones(1000) for _ in range(20_000)]  # 80 MB, each below what malloc maps on its own

    call()
    assert measure_peak(call, "cpu")[1] == pytest.approx(80e6, rel=0.25)  # with the tensors' own objects


def test_a_system_that_cannot_tell_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("longvision.benchmark.memory.CLEAR_REFS", tmp_path / "no" / "file")
    assert measure_peak(lambda: 3, "cpu") == (3, None)


@linux
def test_a_high_water_mark_that_is_not_reset_is_not_believed(monkeypatch, tmp_path):
    torch.ones(FLOATS)
    monkeypatch.setattr("longvision.benchmark.memory.CLEAR_REFS", tmp_path / "a file like any other")
    assert measure_peak(lambda: 3, "cpu") == (3, None)


@linux
def test_available_memory_is_some_of_the_machine(monkeypatch, tmp_path):
    assert 2**26 < available_memory() < 2**45
    for name, text in {"max": "300000000", "current": "100000000"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("longvision.benchmark.memory.CGROUPS", [(tmp_path / "max", tmp_path / "current")])
    assert available_memory() == 200_000_000  # of the container
    (tmp_path / "max").write_text("max")
    assert available_memory() > 0


@pytest.mark.parametrize(
    "error, expected",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_memory(error, expected):
    assert is_out_of_memory(error) == expected
