"""The first process writes alone: how that ends reaches all."""

from threading import Barrier, Thread
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine import report
from longvision.engine.ranks import lost_peers_named, on_first_rank
from longvision.errors import MissingFileError

RANKS = 3


class Ranks:
    """Trainers of processes that are threads here; `broadcast` waits for all of them, or raises in the end."""

    def __init__(self):
        self.barrier, self.said = Barrier(RANKS, timeout=30), None

    def trainer(self, rank):
        def broadcast(value):
            if rank == 0:
                self.said = value
            self.barrier.wait()
            said = self.said
            self.barrier.wait()
            return said

        strategy = SimpleNamespace(broadcast=broadcast, is_global_zero=rank == 0)
        return SimpleNamespace(is_global_zero=rank == 0, strategy=strategy, callback_metrics={})

    def run(self, work):
        """`work(trainer, rank)` in every rank at a time -> what it raised there, None where nothing."""
        raised = [None] * RANKS

        def one(rank):
            try:
                work(self.trainer(rank), rank)
            except Exception as error:
                raised[rank] = error

        threads = [Thread(target=one, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


def test_the_first_rank_works_and_all_go_on():
    done = []
    raised = Ranks().run(lambda trainer, rank: on_first_rank(trainer.strategy, lambda: done.append(rank)))
    assert done == [0] and raised == [None] * RANKS


@pytest.mark.parametrize(
    "error, of_others",
    [(OSError("disk full"), RuntimeError), (MissingFileError("no folder"), MissingFileError)],
    ids=["bug", "user"],
)
def test_a_failure_reaches_all_and_stays_what_it_is_in_the_first(error, of_others):
    def fail():
        raise error

    first, *others = Ranks().run(lambda trainer, rank: on_first_rank(trainer.strategy, fail))
    assert first is error
    assert [type(one) for one in others] == [of_others] * (RANKS - 1)
    assert all(type(error).__name__ in str(one) and str(error) in str(one) for one in others)


@pytest.mark.parametrize("stage", ["save_model", "save_results"])
def test_a_report_that_cannot_be_written_ends_every_rank(monkeypatch, tmp_path, stage):
    def fail(*_):
        raise OSError("disk full")

    for name in ("save_model", "save_results"):
        monkeypatch.setattr(report, name, fail if name == stage else lambda *_: None)
    evaluated = []

    def evaluate(trainer, task, data, split):
        trainer.strategy.broadcast(None)  # Lightning waits for all at its start
        evaluated.append(split)
        return report.Outcome(split)

    monkeypatch.setattr(report, "evaluate", evaluate)
    task = SimpleNamespace(monitor=lambda: "val/accuracy")
    data, run = SimpleNamespace(has_test=True), SimpleNamespace(best=tmp_path / "none", has_best=False, weights="x")
    raised = Ranks().run(lambda trainer, rank: report.write_report(trainer, task, data, run))
    assert [type(error) for error in raised] == [OSError, RuntimeError, RuntimeError]
    assert all("disk full" in str(error) for error in raised)
    assert len(evaluated) == (0 if stage == "save_model" else RANKS)


def test_of_a_single_process_an_error_is_its_own(monkeypatch):
    """Also where torch was built without processes."""
    monkeypatch.delattr(torch.distributed, "DistError")
    with pytest.raises(RuntimeError, match="a bug of gloo"), lost_peers_named(SimpleNamespace(world_size=1)):
        raise RuntimeError("a bug of gloo")
