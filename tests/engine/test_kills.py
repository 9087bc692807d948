"""benchmarks/kills.py in short: a training that is killed (SIGKILL) goes on as if nothing had been."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.slow  # each process imports PyTorch and Lightning

FILE = Path(__file__).parents[2] / "benchmarks" / "kills.py"
SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "8", "--trainer.limit_test_batches", "1"]


@pytest.fixture(scope="module")
def kills():
    spec = importlib.util.spec_from_file_location("kills", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def whole(kills, tmp_path_factory):
    training = kills.Training(tmp_path_factory.mktemp("whole") / "run", 0, [*kills.WORDS, *SHORT])
    training.finish()
    return training


@pytest.mark.parametrize("workers, steps", [(0, 13), (2, 1), (4, 10)])
def test_the_rest_is_the_same(kills, whole, tmp_path, workers, steps):
    """In the second epoch, before the first checkpoint, and between two of them."""
    killed = kills.Training(tmp_path / "run", workers, [*kills.WORDS, *SHORT])
    assert killed.kill(steps=steps)
    killed.finish()
    assert len(killed.losses()) == 16 and killed.lines() > 16 - 4
    assert killed.differences(whole) == []
