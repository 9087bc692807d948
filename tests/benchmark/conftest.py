"""The processes that a benchmark starts take one thread, as the tests themselves."""

import pytest

from longvision.benchmark.case import Case


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def case():
    """case(size=64) -> a Case of a tiny model, changed so."""

    def make(**changes: object) -> Case:
        options = dict(model="test_vit", variant="", mode="infer", asked=32, size=32, batch=2, dtype="float32")
        if "size" in changes:
            changes.setdefault("asked", changes["size"])
        return Case(**{**options, "device": "cpu", **changes})  # type: ignore[arg-type]

    return make
