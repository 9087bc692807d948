"""Runs whose validation says nothing: there is a model at the end, the last epoch's, and no best one is spoken of."""

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine import trainer as training
from longvision.engine.callbacks.progress import percent
from longvision.engine.report import Outcome
from longvision.engine.run import Run
from support import counted

pytestmark = pytest.mark.filterwarnings("ignore:.*(exists and is not empty|LeafSpec|many workers|logging interval)")
NAN = math.nan


class Scored(counted.Linear):
    """Its metric is what `scores` says of each epoch."""

    scores = (NAN, NAN, NAN)

    def on_validation_epoch_end(self):
        self.log("val/score", torch.tensor(self.scores[min(self.current_epoch, len(self.scores) - 1)]))


@pytest.fixture
def scored(monkeypatch, tmp_path):
    """scored(scores, **options) -> the run's folder."""

    def call(scores, **options):
        monkeypatch.setattr(Scored, "scores", scores)
        monkeypatch.setattr(counted, "Linear", Scored)
        counted.fit(tmp_path, max_epochs=len(scores), **options)
        return Run(tmp_path)

    return call


@pytest.mark.parametrize(
    "scores, best",
    [
        pytest.param((NAN, NAN, NAN), None, id="no-epoch-has-objects"),
        pytest.param((NAN, 0.1, 0.3), 3, id="nan-first"),
        pytest.param((0.3, NAN, 0.1), 1, id="nan-between"),
        pytest.param((0.0, NAN, NAN), 1, id="nan-after-0"),
    ],
)
def test_an_epoch_without_a_number_is_never_the_best(scored, scores, best):
    run = scored(scores)
    assert run.last.exists() and run.best.exists() == (best is not None)
    if best:
        assert torch.load(run.best, weights_only=True)["epoch"] + 1 == best


@pytest.mark.parametrize(
    "options, best",
    [
        pytest.param({"limit_val_batches": 0}, False, id="limit_val_batches-0"),
        pytest.param({"limit_val_batches": 0.0}, False, id="limit_val_batches-0.0"),
        pytest.param({"check_val_every_n_epoch": 5}, False, id="validates-after-the-end"),
        pytest.param({"check_val_every_n_epoch": 2}, True, id="validates-once"),
    ],
)
def test_the_last_state_is_there_after_every_epoch(scored, options, best):
    run = scored((0.5, 0.5, 0.5), **options)
    assert torch.load(run.last, weights_only=True)["epoch"] == 2
    assert run.best.exists() == best


def test_a_metric_that_is_no_number_is_said_in_words():
    outcome = Outcome("val", {"box_ap": NAN}, {"box_ap": "box AP"}, epoch="last")
    assert str(outcome).startswith("validation box AP not measurable (the last epoch's")
    assert (percent(0.0), percent(0.123)) == ("0.0 %", "12.3 %")


def test_the_report_warns_and_keeps_the_last_epoch(scored, tmp_path, monkeypatch):
    """Of a whole run; nothing that is no number is written as one."""
    from longvision.engine import report

    monkeypatch.setattr(report, "write_card", lambda *_: None)
    monkeypatch.setattr(report, "draw_artifacts", lambda *_: None)
    monkeypatch.setattr(report, "save_model", lambda *_: None)
    written = []
    monkeypatch.setattr(report, "add_metrics", lambda task, data, run, metrics: written.append(metrics))
    monkeypatch.setattr(training, "fit_or_interrupt", _and_report(training.fit_or_interrupt, written))
    with pytest.warns(UserWarning, match="val/score was not measurable in any epoch"):
        scored((NAN, NAN))
    outcome, metrics = written[1], written[0]
    assert outcome.epoch == "last" and metrics == {}


def _and_report(fit, written):
    def call(trainer, task, data, resume):
        fit(trainer, task, data, resume)
        written.append(training.write_report(trainer, task, data, Run(Path(trainer.checkpoint_callback.dirpath))))

    return call


def test_images_without_objects_have_no_ap():
    """Also where all objects are crowds (nine-or-null#14)."""
    pytest.importorskip("faster_coco_eval")
    from longvision.data.sources.objects import as_target
    from longvision.metrics.average_precision import CocoAveragePrecision
    from longvision.types import Detections

    found = Detections(torch.tensor([[1.0, 1, 5, 5]]), torch.tensor([0.5]), torch.tensor([0]))
    for truth in (as_target(1, [], []), as_target(1, [(0, 0, 4, 4)], [0], [True])):
        metric = CocoAveragePrecision(2)
        metric.update([found], [truth])
        assert metric.compute()["box_ap"].isnan()
