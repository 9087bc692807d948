"""What every test needs: no network, a seed, the development data, and memory that shows when it is read too early."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: nothing below may come first
# Two threads that wait for each other at every small operation are a hundred times slower than one where a second
# process takes their cores; commands that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from collections.abc import Iterator
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection() -> None:
    """Before any test module. Not at the top: xdist's first process collects nothing, and need not wait for PyTorch."""
    import support.start  # noqa: F401


@pytest.fixture
def shared() -> Path:
    """The development data: golden files and real sets. A checkout does not have to have it."""
    folder = Path(os.environ.get("LONGVISION_SHARED", BESIDE))
    if not folder.is_dir():
        pytest.skip(f"no development data in {folder} (LONGVISION_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def poison() -> Iterator[None]:
    """`torch.empty` and its kin hand out NaN (or the largest integer), so that a value never written is seen."""
    import torch

    asked = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(8).isnan().all() and torch.zeros(8).new_empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(asked[0], warn_only=asked[1])
    torch.utils.deterministic.fill_uninitialized_memory = fill
