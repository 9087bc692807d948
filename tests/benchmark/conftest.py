"""What the tests of the benchmark share: tiny cases, plans, and a clock that only says what a test gave it."""

import itertools
from collections.abc import Callable

import pytest

import support.start  # noqa: F401 before our own
from longvision.benchmark.case import Case
from longvision.benchmark.plan import ModelsPlan


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the processes that a benchmark starts, as of the tests themselves."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def case() -> Callable[..., Case]:
    """case(size=64) -> a Case of a tiny model, changed so."""

    def make(**changes: object) -> Case:
        options = dict(model="test_vit", form="", mode="infer", requested=32, size=32, batch=2, dtype="float32")
        if "size" in changes:
            changes.setdefault("requested", changes["size"])
        return Case(**{**options, "device": "cpu", **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def plan() -> Callable[..., ModelsPlan]:
    """plan([names], [sizes], mode="train") -> a ModelsPlan for the CPU."""

    def make(models: list[str], sizes: list[int], **options: object) -> ModelsPlan:
        return ModelsPlan(models=models, sizes=sizes, **{"device": "cpu", **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def clock() -> Callable[[float], Callable[[], float]]:
    """clock(0.5) -> a clock that moves by half a second whenever it is read: so long takes every call."""
    return lambda step: itertools.count(step=step).__next__
