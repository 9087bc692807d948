"""metrics.csv: a row an epoch."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine.callbacks.history import EpochTable, read_history


def make_trainer(epoch, is_global_zero=True, **metrics):
    metrics = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    optimizer = SimpleNamespace(param_groups=[{"lr": 9.0}, {"lr": 0.5}])
    return SimpleNamespace(
        is_global_zero=is_global_zero, current_epoch=epoch, global_step=10 * (epoch + 1), optimizers=[optimizer],
        callback_metrics=metrics,
    )  # fmt: skip


def test_history(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch in range(2):
        table = EpochTable(path)  # the second is that of a resumed run
        trainer = make_trainer(epoch, train__loss=2.0, train__loss_step=9.0, val__loss=1.25)
        table.on_train_epoch_start(trainer, None)
        table.on_train_epoch_end(trainer, None)
    assert path.read_text().splitlines()[0] == "epoch,step,lr,train/loss,val/loss,seconds"
    rows = read_history(path)
    assert [row.pop("seconds") >= 0 for row in rows] == [True, True]
    assert rows == [
        {"epoch": 1, "step": 10, "lr": 0.5, "train/loss": 2.0, "val/loss": 1.25},
        {"epoch": 2, "step": 20, "lr": 0.5, "train/loss": 2.0, "val/loss": 1.25},
    ]


def test_only_one_process_writes_the_history(tmp_path):
    table, trainer = EpochTable(tmp_path / "metrics.csv"), make_trainer(0, is_global_zero=False, val__loss=1.0)
    table.on_train_epoch_start(trainer, None)
    table.on_train_epoch_end(trainer, None)
    assert not (tmp_path / "metrics.csv").exists()


def test_an_epoch_without_validation_keeps_its_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    for epoch, metrics in enumerate([{"train__loss": 2.0}, {"train__loss": 1.0, "val__loss": 3.0}]):
        table, trainer = EpochTable(path), make_trainer(epoch, **metrics)
        table.on_train_epoch_start(trainer, None)
        table.on_train_epoch_end(trainer, None)
    assert [row.get("val/loss") for row in read_history(path)] == [None, 3.0]
    assert read_history(path)[1]["seconds"] < 1


def test_an_epoch_that_was_run_twice_counts_as_it_was_run_last(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,val/loss,val/accuracy\n1,3.0,\n2,2.5,0.5\n2,2.25,0.75\n3,1.0,1\n")
    assert read_history(path) == [
        {"epoch": 1, "val/loss": 3.0},
        {"epoch": 2, "val/loss": 2.25, "val/accuracy": 0.75},
        {"epoch": 3, "val/loss": 1.0, "val/accuracy": 1.0},
    ]
