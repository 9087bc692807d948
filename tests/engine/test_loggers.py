"""Weights & Biases, played by a module that notes what it is told."""

import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("lightning")
from lightning.pytorch.loggers import wandb as theirs

from longvision.engine.loggers import make_loggers
from longvision.engine.run import Run


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path, "x")
    run.new_config().write_text("model: {lr: 0.5}\n")
    return run


@pytest.fixture
def wandb(monkeypatch):
    """`wandb.begun` holds what `wandb.init` was called with, `wandb.reachable` whether it answers."""
    module = ModuleType("wandb")
    module.begun, module.logged, module.run, module.reachable = [], [], None, True

    def init(**options):
        module.begun.append({**options, "mode": os.environ["WANDB_MODE"]})
        if not module.reachable and module.begun[-1]["mode"] == "online":
            raise ConnectionError("no route to host")
        settings = SimpleNamespace(update=lambda values, **_: module.logged.append(values))
        return SimpleNamespace(config=settings, log=lambda values, **_: module.logged.append(values))

    module.init = init
    parts = {name: ModuleType(f"wandb.{name}") for name in ("sdk", "sdk.lib", "wandb_run")}
    parts["sdk.lib"].RunDisabled = parts["wandb_run"].Run = type("Run", (), {})
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, f"wandb.{name}", part)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(theirs, "_WANDB_AVAILABLE", True)
    monkeypatch.setenv("WANDB_MODE", "online")
    return module


def test_it_gets_metrics_and_the_configuration_under_the_run_s_name(run, wandb):
    board, logger = make_loggers(run, "my project")
    assert type(board).__name__ == "TensorBoardLogger"
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["id"], begun["resume"]) == (
        "my project", run.path.name, run.path.name, "allow",
    )  # fmt: skip
    logger.log_metrics({"val/loss": 0.25}, step=3)
    assert wandb.logged[0] == {"model": {"lr": 0.5}} and wandb.logged[1]["val/loss"] == 0.25


def test_without_its_server_it_writes_into_the_folder(run, wandb):
    wandb.reachable = False
    with pytest.warns(UserWarning, match=r"no route to host.*wandb sync"):
        _, logger = make_loggers(run, "my project")
    assert [begun["mode"] for begun in wandb.begun] == ["online", "dryrun"]
    assert str(wandb.begun[1]["dir"]) == str(run.path)
    logger.log_metrics({"val/loss": 0.25})


def test_nobody_asked_for_it(run):
    assert len(make_loggers(run, None)) == 1
