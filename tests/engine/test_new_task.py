"""What a new task costs: one file, `support/toy_task.py`, and one line of the registry. The command knows it."""

import pytest
import yaml
from PIL import Image

pytest.importorskip("lightning")
from longvision.errors import UserError
from longvision.inference import Predictor
from longvision.registry import TASKS, task_entry
from longvision_cli.main import main
from support import toy_task


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(TASKS, "brightness", toy_task.ENTRY)


RECIPE = {
    "task": "brightness",
    "source": "digits",
    "model": {"name": "vim_nano_patch4_32", "args": {"depth": 1, "embed_dim": 16}, "bias": 1000.0, "lr": 0.0},
    "data": {"size": 16, "workers": 0, "batch_size": 8},
    "trainer": {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1,
                "accelerator": "cpu"},
}  # fmt: skip


def test_it_trains_and_predicts(registered, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bright.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["train", "-c", "bright.yaml"]) == 0
    *_, result, folder = capsys.readouterr().out.splitlines()
    assert result.startswith("test closeness ")
    assert {path.name for path in (tmp_path / folder).iterdir()} >= {"model.safetensors", "README.md", "curves.png"}
    assert Predictor(tmp_path / folder, "cpu")(Image.new("L", (20, 20))) == pytest.approx(1000, abs=50)


def test_its_options_are_checked_as_those_of_all_tasks(registered, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bright.yaml").write_text(yaml.safe_dump(RECIPE))
    assert main(["train", "-c", "bright.yaml", "--model.lr", "-1"]) == 2
    assert "--model.lr is -1" in capsys.readouterr().err


def test_without_its_line_there_is_no_such_task():
    with pytest.raises(UserError, match="brightness"):
        task_entry("brightness")
