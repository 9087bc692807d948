"""Images a second and memory, as they are logged."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine.callbacks import throughput
from longvision.engine.callbacks.throughput import MEMORY, RATE, Throughput, peak_memory

CPU = torch.device("cpu")


@pytest.fixture
def module():
    """A module that holds what is logged, and how it is joined over devices."""
    logged = {}
    return SimpleNamespace(
        device=CPU, logged=logged, log=lambda name, value, reduce_fx, **_: logged.update({name: (value, reduce_fx)})
    )


def test_validation_does_not_count_as_training(monkeypatch, module):
    """60 images in 4 + 2 seconds, around a validation of 90."""
    clock = iter([100.0, 104.0, 194.0, 196.0])
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(clock))
    seen = Throughput()
    seen.on_train_epoch_start(None, module)
    for _ in range(3):
        seen.on_train_batch_end(None, module, None, (torch.zeros(20, 1, 2, 2), torch.zeros(20)), 0)
    seen.on_validation_start(None, module)
    seen.on_validation_end(None, module)
    seen.on_train_epoch_end(None, module)
    assert module.logged[RATE] == (10.0, "sum")  # of all devices together
    assert module.logged[MEMORY][1] == "max"


def test_a_run_that_goes_on_behind_the_last_batch_has_no_speed(module):
    seen = Throughput()
    seen.on_train_start(None, module)
    seen.on_train_epoch_end(None, module)
    assert not module.logged


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone has /proc")
def test_of_a_process_it_is_the_most_that_was_resident(monkeypatch):
    assert 2**24 < peak_memory(CPU) < 2**40
    status = "VmPeak:\t 9999 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1024 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda *_: status)
    assert peak_memory(CPU) == 2 * 2**20


def test_a_system_that_does_not_tell(monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert peak_memory(CPU) is None


def test_on_a_gpu_it_is_what_torch_handed_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    assert peak_memory(torch.device("cuda", 1)) == 7
