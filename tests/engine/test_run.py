"""Run folders, their history, and the names near a mistyped model."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine import run as runs
from longvision.engine.history import EpochTable, read_history
from longvision.engine.run import Run
from longvision.models.backbone import create_backbone, nearest_models


def test_folders_of_the_same_second_get_numbers(tmp_path, monkeypatch):
    now = datetime.datetime(2026, 3, 4, 5, 6, 7)
    monkeypatch.setattr(runs.datetime, "datetime", SimpleNamespace(now=lambda: now))
    names = [Run.create(tmp_path / "new", "digits-vim").path.name for _ in range(3)]
    assert names == [f"digits-vim-20260304-050607{end}" for end in ("", "-2", "-3")]


def test_no_two_processes_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: Run.create(tmp_path, "x").path, range(24)))
    assert len(set(paths)) == 24


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        Run.create(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_configurations_are_numbered(tmp_path):
    run = Run.create(tmp_path, "x")
    for number in range(3):
        run.new_config().write_text(str(number))
    assert [path.name for path in run.configs()] == ["config.yaml", "config-resumed-1.yaml", "config-resumed-2.yaml"]
    assert [path.read_text() for path in run.configs()] == ["0", "1", "2"]


def test_the_last_configuration_is_the_last_after_ten_too(tmp_path):
    run = Run.create(tmp_path, "x")
    for number in range(12):
        run.new_config().write_text(str(number))
    assert run.configs()[-1].read_text() == "11"


def test_an_unused_folder_goes_and_a_used_one_stays(tmp_path):
    unused, with_metrics, with_checkpoints = (Run.create(tmp_path, "x") for _ in range(3))
    unused.new_config().write_text("x")
    with_metrics.metrics.write_text("epoch\n")
    with_checkpoints.checkpoints.mkdir()
    assert [run.discard_if_unused() for run in (unused, with_metrics, with_checkpoints)] == [True, False, False]
    assert [run.path.exists() for run in (unused, with_metrics, with_checkpoints)] == [False, True, True]


def test_what_can_be_opened_resumed_and_predicted_with(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Run.open(tmp_path / "no")
    run = Run.create(tmp_path, "x")
    with pytest.raises(ValueError, match=r"not a run folder, it has no config\.yaml"):
        Run.open(run.path)
    run.new_config().write_text("x")
    assert Run.open(str(run.path)).path == run.path
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        run.resume_from()
    run.checkpoints.mkdir()
    run.last.touch()
    assert run.resume_from() == run.last
    with pytest.raises(ValueError, match="not finished"):
        run.trained_weights()
    run.weights.touch()
    assert run.trained_weights() == run.weights
    with pytest.raises(ValueError, match="is finished"):
        run.resume_from()


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
        trainer = make_trainer(epoch, train__loss=9.0, train__loss_step=9.0, train__loss_epoch=2.0, val__loss=1.25)
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


@pytest.mark.parametrize(
    "typed, first",
    [
        ("vim_tinny_patch16_224", "vim_tiny_patch16_224"),
        ("vim_nano", "vim_nano_patch4_32"),
        ("vim_small", "vim_small_patch16_224"),
        ("deit_tiny_patch16_244", "deit_tiny_patch16_224"),
        ("resnet19", "resnet18"),
    ],
)
def test_nearest_models(typed, first):
    found = nearest_models(typed)
    assert 1 <= len(found) <= 3
    assert first in (found[:1] if "vim" in typed else found)


def test_nothing_is_near():
    assert nearest_models("qqqqqqqqqqqq") == []
    with pytest.raises(ValueError, match="`longvision models` lists those there are"):
        create_backbone("qqqqqqqqqqqq", 2, 3, (32, 32))
    with pytest.raises(ValueError, match="did you mean vim_tiny_patch16_224"):
        create_backbone("vim_tiny_patch16_225", 2, 3, (32, 32))


def test_a_convolutional_model_takes_any_size():
    assert create_backbone("resnet10t", 3, 1, (40, 56))(torch.zeros(2, 1, 40, 56)).shape == (2, 3)
