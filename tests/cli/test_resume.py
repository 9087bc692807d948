"""`longvision train --resume`: from which checkpoint, and with which options, a run goes on."""

import csv
import errno
from pathlib import Path

import pytest
import torch
import yaml

from longvision.engine import report
from longvision.engine import trainer as training
from longvision.engine.callbacks.checkpoints import LastCheckpoint
from longvision.engine.callbacks.history import EpochTable
from longvision.engine.run import Run
from longvision.models.weights.files import read_weights
from support.checkpoints import DAMAGES


def steps(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [(row["epoch"], row["step"]) for row in csv.DictReader(file)]


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(longvision, stopped_run):
    run = Run(stopped_run)
    DAMAGES["a-bit-of-a-tensor"](run.last)
    answer = longvision("train", "--resume", run.path)
    assert answer.code == 0, answer.err
    (told,) = [line for line in answer.out.splitlines() if "cut short" in line]
    assert str(run.last) in told and f"goes on from {run.previous}" in told
    assert steps(run.path)[-1] == ("2", "8")


@pytest.mark.slow
def test_without_a_checkpoint_that_is_whole(longvision, stopped_run):
    for checkpoint in Run(stopped_run).checkpoints.iterdir():
        DAMAGES["cut"](checkpoint)
    answer = longvision("train", "--resume", stopped_run)
    assert answer.code == 2 and "no other checkpoint" in answer.err and "Traceback" not in answer.err


def weights(run):
    return read_weights(run / "model.safetensors")[0]


def same(first, second):
    return all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


def table(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k.partition("/")[0] in ("epoch", "step", "lr", "train", "val")}
                for row in csv.DictReader(file)]  # fmt: skip


@pytest.fixture
def killed(train, monkeypatch):
    """A training whose process ends without a word at a call of `name` in `where`, so that nothing is saved then."""

    def call(where, name, *words):
        def kill(*_, **__):
            raise SystemError("killed")

        with monkeypatch.context() as patched:
            patched.setattr(LastCheckpoint, "on_exception", lambda *_: None)
            patched.setattr(where, name, kill)
            patched.setattr(Run, "discard_if_unused", lambda self: None)
            with pytest.raises(SystemError):
                train("--runs", "killed", *words)
        (folder,) = Path("killed").iterdir()
        return folder

    return call


@pytest.mark.parametrize(
    "where, name",
    [
        pytest.param(training, "_note_data", marks=pytest.mark.slow),
        (training, "fit_or_interrupt"),
        pytest.param(LastCheckpoint, "_save_checkpoint", marks=pytest.mark.slow),
        (report, "save_results"),
        pytest.param(training, "write_report", marks=pytest.mark.slow),
    ],
    ids=["before-data.json", "before-a-step", "after-an-epoch", "in-the-report", "before-the-report"],
)
def test_a_process_that_was_killed_leaves_what_goes_on(longvision, digits_run, killed, where, name):
    """Before there is a checkpoint it begins again, after training its report is made."""
    folder = killed(where, name)
    answer = longvision("train", "--resume", folder)
    assert answer.code == 0, answer.err
    assert same(digits_run, folder) and table(folder) == table(digits_run)
    assert answer.out.splitlines()[-2].startswith("test accuracy")
    assert "metrics" in read_weights(folder / "model.safetensors")[1]
    again = longvision("train", "--resume", folder)
    assert again.code == 2 and "is finished" in again.err


@pytest.mark.slow
def test_more_epochs_than_a_finished_run_had(train, longvision, digits_run):
    """Its schedule is another: as many steps as without a break, and a report anew."""
    run = train().run
    answer = longvision("train", "--resume", run, "--trainer.max_epochs", 3)
    assert answer.code == 0, answer.err
    assert steps(run) == [("1", "2"), ("2", "4"), ("3", "6")]
    assert table(run)[:2] == table(digits_run)
    assert longvision("train", "--resume", run).code == 2


def test_a_run_that_time_ended_goes_on(train, longvision, digits_run):
    """Within its second epoch; when its time is used up, that is said."""
    words = ["--trainer.max_epochs", -1, "--trainer.max_time"]
    ended = train(*words, "00:00:00:00", "--trainer.min_steps", 3)
    run = ended.run
    assert steps(run) == [("1", "2"), ("2", "3")]
    assert "max_time ended the training after 3 steps; go on with: longvision train --resume" in ended.out
    used = longvision("train", "--resume", run)
    assert used.code == 2 and "is finished" in used.err and "max_time" in used.err and "goes on in" not in used.out
    answer = longvision("train", "--resume", run, *words, "01:00:00:00", "--trainer.max_epochs", 2)
    assert answer.code == 0, answer.err
    assert steps(run) == [("1", "2"), ("2", "4")]
    assert "max_time ended" not in answer.out
    less = longvision("train", "--resume", run, "--trainer.max_epochs", 1)
    assert less.code == 2 and "Traceback" not in less.err and "max_epochs" in less.err


def test_a_full_disk(train, longvision, monkeypatch):
    """In the second epoch, told in a sentence that names what is whole."""
    write = torch.save

    def full(checkpoint, file):
        if checkpoint["global_step"] > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(checkpoint, file)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        answer = train()
    (run,) = map(Run, Path("runs").iterdir())
    assert answer.code == 2 and "Traceback" not in answer.err
    (said,) = answer.err.splitlines()[-1:]
    assert "No space left" in said and f"{run.last} is whole" in said and f"--resume {run.path}" in said
    assert longvision("train", "--resume", run.path).code == 0


@pytest.mark.slow
def test_a_full_disk_for_the_table(train, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    monkeypatch.setattr(EpochTable, "_write", full)
    answer = train()
    assert answer.code == 2 and "No space left on device" in answer.err and "--resume" in answer.err


def test_another_learning_rate(longvision, stopped_run):
    """Is the optimizer's from the next step on, where it is allowed; and is the run's from then."""
    refused = longvision("train", "--resume", stopped_run, "--model.lr", 0.5)
    assert refused.code == 2 and "--model.lr 0.5 (it was 0.002)" in refused.err
    answer = longvision("train", "--resume", stopped_run, "--model.lr", 0.3, "--allow-changed-config")
    assert answer.code == 0, answer.err
    assert "goes on with --model.lr 0.3, it was 0.002" in answer.out
    before, after = (float(row["lr"]) for row in table(stopped_run))
    assert before <= 0.002 and after > 0.01
    groups = torch.load(Run(stopped_run).last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {0.3}
    assert [yaml.safe_load(file.read_text())["model"]["lr"] for file in Run(stopped_run).configs()] == [0.002, 0.3]


def test_another_metric_and_schedule(longvision, stopped_run):
    """The best epoch by another metric is one of those that follow."""
    options = {
        "--model.monitor": "auroc",
        "--model.schedule": "step",
        "--model.warmup_epochs": 0,
        "--model.final_lr": 0.25,
    }
    words = [word for pair in options.items() for word in pair]
    answer = longvision("train", "--resume", stopped_run, *words, "--allow-changed-config")
    assert answer.code == 0, answer.err
    assert "goes on with --model.monitor auroc, it was None" in answer.out and "warning" not in answer.err
    assert torch.load(Run(stopped_run).best, weights_only=True)["global_step"] == 8
    groups = torch.load(Run(stopped_run).last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["lr"] for group in groups} == {0.002 * 0.25}


def test_without_another_option_nothing_is_noted_anew(longvision, stopped_run):
    answer = longvision("train", "--resume", stopped_run)
    assert answer.code == 0, answer.err
    assert f"goes on in {stopped_run}\n" in answer.out
    assert [file.name for file in Run(stopped_run).configs()] == ["config.yaml"]


@pytest.mark.slow
def test_save_every(train, longvision):
    assert longvision("train", "--save-every", -1).code == 2
    run = Run(train("--save-every", 1, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 4).run)
    assert torch.load(run.previous, weights_only=True)["global_step"] == 3
