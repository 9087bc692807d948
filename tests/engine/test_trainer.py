"""The precision that a Trainer is made with."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine import trainer as training


@pytest.fixture
def precision(monkeypatch):
    """precision(gpu=..., native=..., **options) -> what Lightning's Trainer is asked for."""
    monkeypatch.setattr(training, "Trainer", lambda **options: SimpleNamespace(**options))

    def asked(gpu, native=True, **options):
        def supported(including_emulation=True):
            return gpu and (native or including_emulation)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        return training.make_trainer(options).precision

    return asked


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
def test_bf16_on_a_gpu(precision, accelerator):
    assert precision(gpu=True, accelerator=accelerator) == "bf16-mixed"
    assert precision(gpu=True, accelerator=accelerator, precision=None) == "bf16-mixed"


def test_bf16_on_a_gpu_unless_told_otherwise(precision):
    assert precision(gpu=True) == "bf16-mixed"


@pytest.mark.parametrize("gpu, accelerator", [(False, "auto"), (False, "cpu"), (True, "cpu")])
def test_float32_on_a_cpu(precision, gpu, accelerator):
    assert precision(gpu=gpu, accelerator=accelerator) == "32-true"


def test_float32_on_a_gpu_that_only_emulates_bf16(precision):
    assert precision(gpu=True, native=False) == "32-true"


@pytest.mark.parametrize("asked", ["32-true", "16-mixed", "bf16-true", 32])
@pytest.mark.parametrize("gpu", [True, False])
def test_what_is_asked_for_wins(precision, gpu, asked):
    assert precision(gpu=gpu, precision=asked) == asked
