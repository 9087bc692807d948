"""`longvision validate`: the metrics of the training's report, again and on other data."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import yaml

from longvision.engine import trainer
from longvision.models.weights.files import read_weights


def metrics(answer):
    assert answer.code == 0, answer.err
    pairs = re.findall(r"^(\w+) +(\d+\.\d+)( %)?$", answer.out, re.M)
    return {name: float(value) for name, value, _ in pairs}


def test_the_test_split_is_that_of_the_report(longvision, digits_run):
    answer = longvision("validate", digits_run, "--split", "test")
    assert answer.out.splitlines()[0] == "360 images of the test split of digits"
    _, metadata = read_weights(digits_run / "model.safetensors")
    expected = {name.removeprefix("test/"): value for name, value in metadata["metrics"].items()}
    assert expected.keys() == {"loss", "accuracy", "balanced_accuracy", "auroc", "top5"}
    assert metrics(answer) == pytest.approx(
        {name: round(value, 4) if name == "loss" else round(100 * value, 1) for name, value in expected.items()}
    )


def test_the_val_split_is_that_of_the_best_epoch(longvision, digits_run):
    answer = longvision("validate", digits_run)
    assert answer.out.splitlines()[0] == "144 images of the val split of digits"
    with (digits_run / "metrics.csv").open(newline="") as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["val/accuracy"]))
    assert metrics(answer)["accuracy"] == pytest.approx(100 * float(best["val/accuracy"]), abs=0.06)
    assert metrics(answer)["loss"] == pytest.approx(float(best["val/loss"]), abs=1e-3)


def test_on_one_device_on_however_many_it_trained(longvision, digits_run, tmp_path, monkeypatch):
    run = shutil.copytree(digits_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "num_nodes": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    asked, make = {}, trainer.make_trainer
    monkeypatch.setattr(trainer, "make_trainer", lambda options: make(asked.setdefault("options", options)))
    answer = longvision("validate", run)
    assert answer.code == 0, answer.err
    assert [asked["options"][name] for name in ("devices", "strategy", "num_nodes")] == [1, "auto", 1]


def test_nothing_is_written(longvision, digits_run, tmp_path):
    before = sorted(digits_run.rglob("*"))
    longvision("validate", digits_run, "--split=test")
    assert sorted(digits_run.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_data_elsewhere(longvision, folder_run, images, tmp_path):
    """All images of the class light, in both classes' folders: half of the answers must be wrong."""
    for name in ("dark", "light"):
        for split in ("train", "val"):
            shutil.copytree(images / "val" / "light", tmp_path / "other" / split / name)
    answer = longvision("validate", folder_run, "--data.path", tmp_path / "other")
    assert answer.out.splitlines()[0] == f"8 images of the val split of {tmp_path / 'other'}"
    assert metrics(answer)["accuracy"] == 50.0


def test_without_a_batch_there_is_nothing_to_say(longvision, digits_run):
    answer = longvision("validate", digits_run, "--trainer.limit_val_batches", 0)
    assert answer.code == 2 and "limit_val_batches" in answer.err
    assert answer.out == ""


def test_changed_classes_are_refused(longvision, folder_run, own_images):
    for split in ("train", "val"):
        (own_images / split / "dark").rename(own_images / split / "night")
    answer = longvision("validate", folder_run, "--data.path", own_images)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "the classes night" in answer.err and "dark, light" in answer.err


def test_a_split_that_is_not_there(longvision, folder_run, own_images):
    answer = longvision("validate", folder_run, "--data.path", own_images, "--split", "test")
    assert answer.code == 2
    assert "has no test images: add them as test, or use the validation images" in answer.err


def test_data_that_is_gone(longvision, folder_run):
    answer = longvision("validate", folder_run, "--data.path", "gone")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "gone does not exist" in answer.err


# Several numbers of tokens


def test_a_curve_over_tokens(longvision, digits_run):
    """Images of 8 x 8 have 16 patches of 4 in training, at 16 x 16: with as many it is the usual evaluation."""
    answer = longvision("validate", digits_run, "--split", "test", "--tokens", "16,4", "--out", "curve")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[0] == "360 images of the test split of digits"
    with open("curve/tokens.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    usual = metrics(longvision("validate", digits_run, "--split", "test"))
    assert [row["tokens"] for row in rows] == [4, 16]
    assert rows[1]["loss"] == pytest.approx(usual["loss"], abs=1e-4) != pytest.approx(rows[0]["loss"], abs=1e-3)
    assert 100 * rows[1]["accuracy"] == pytest.approx(usual["accuracy"], abs=0.06)
    assert f"    16 tokens  accuracy {usual['accuracy']} %" in answer.out
    assert answer.out.splitlines()[-1] == "curve" and Path("curve/tokens.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words, said",
    [
        ("--tokens 0", ["--tokens 0", "64,128,256"]),
        ("--tokens 4,few", ["--tokens 4,few"]),
        ("--out new", ["--out", "--tokens"]),
        ("--tokens 4 --out full", ["--out", "full"]),
    ],
)
def test_mistakes_with_tokens(longvision, digits_run, words, said):
    Path("full").mkdir()
    Path("full", "mine.txt").touch()
    answer = longvision("validate", digits_run, *words.split())
    assert (answer.code, answer.out) == (2, "") and all(word in answer.err for word in said)
    assert not Path("new").exists()
