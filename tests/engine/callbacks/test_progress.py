"""The line of an epoch, where there is no terminal."""

from types import SimpleNamespace

import pytest

pytest.importorskip("lightning")
from lightning.pytorch.callbacks import Timer

from longvision.engine.callbacks import progress
from longvision.engine.callbacks.progress import RunProgress

TASK = SimpleNamespace(metric_names={"accuracy": "accuracy"})


def line(monkeypatch, capsys, total, callbacks=(), **metrics):
    """After 10 of `total` steps in 90 seconds."""
    trainer = SimpleNamespace(
        global_step=0, max_epochs=-1, current_epoch=0, estimated_stepping_batches=total, progress_bar_metrics={},
        callbacks=callbacks, callback_metrics={"train/loss": 1.25, "val/accuracy": 0.5, **metrics},
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
    """As with --trainer.max_epochs -1."""
    assert line(monkeypatch, capsys, float("inf"), [Timer()]).endswith("1:30 gone")


@pytest.mark.parametrize("total, left", [(float("inf"), "5:00 left"), (50, "5:00 left"), (30, "3:00 left")])
def test_the_time_that_a_run_may_take_counts_over_its_sessions(monkeypatch, capsys, total, left):
    """As with --trainer.max_time 00:00:06:00, of which a minute was before."""
    timer = Timer("00:00:06:00")
    timer.load_state_dict({"time_elapsed": {"train": 60}})
    assert line(monkeypatch, capsys, total, [timer]).endswith(left)


def test_speed_and_memory(monkeypatch, capsys):
    speed = {"speed/images_per_second": 1234.5, "speed/memory_gb": 0.96}
    assert line(monkeypatch, capsys, 30, **speed).endswith("50.0 %  1,234 images/s, 1.0 GB  3:00 left")
    speed = {"speed/images_per_second": 0.55}  # where the system does not tell memory
    assert line(monkeypatch, capsys, 30, **speed).endswith("50.0 %  0.6 images/s  3:00 left")


@pytest.mark.parametrize("limits, left", [([], ""), ([Timer("00:00:06:00")], ", at most 6:00 left")], ids=["", "limit"])
def test_the_bar_tells_them_too(monkeypatch, limits, left):
    speed = SimpleNamespace(rate=50.0)
    monkeypatch.setattr(progress, "Throughput", SimpleNamespace)
    monkeypatch.setattr(progress, "peak_memory", lambda device: 2_500_000_000)
    trainer = SimpleNamespace(
        global_step=1, max_epochs=3, current_epoch=0, world_size=2, callbacks=[speed, *limits], callback_metrics={},
        progress_bar_metrics={"train/loss_step": 2.0},
    )  # fmt: skip
    shown, said = RunProgress(), []
    shown.bar = SimpleNamespace(
        n=0, update=lambda steps: None, set_description_str=lambda text, refresh: said.append(text),
        set_postfix_str=lambda text, refresh: said.append(text),
    )  # fmt: skip
    shown.on_train_batch_end(trainer, SimpleNamespace(metric_names=TASK.metric_names, device="cpu"))
    assert said == ["epoch 1/3", "loss 2.000, 100 images/s, 2.5 GB" + left]
