"""The line of an epoch, where there is no terminal."""

from types import SimpleNamespace

import pytest

pytest.importorskip("lightning")
from longvision.engine.callbacks import progress
from longvision.engine.callbacks.progress import RunProgress

TASK = SimpleNamespace(metric_names={"accuracy": "accuracy"})


def line(monkeypatch, capsys, total):
    """After 10 of `total` steps in 90 seconds."""
    trainer = SimpleNamespace(
        global_step=0, max_epochs=-1, current_epoch=0, estimated_stepping_batches=total, progress_bar_metrics={},
        callback_metrics={"train/loss": 1.25, "val/accuracy": 0.5},
    )  # fmt: skip
    clock = iter([100.0, 190.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = RunProgress()
    shown.on_train_start(trainer, TASK)
    trainer.global_step = 10
    shown.on_train_epoch_end(trainer, TASK)
    return capsys.readouterr().out.strip()


def test_the_time_that_is_left(monkeypatch, capsys):
    assert line(monkeypatch, capsys, 30) == "epoch 1  loss 1.250, val accuracy 50.0 %  3:00 left"


def test_a_training_without_an_end_says_how_long_it_has_run(monkeypatch, capsys):
    """As with --trainer.max_epochs -1 --trainer.max_time 00:01:00:00."""
    assert line(monkeypatch, capsys, float("inf")).endswith("1:30 gone")
