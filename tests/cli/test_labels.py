"""Labels in a table from the command line: train, validate, predict, check-data."""

import json

import numpy as np
import pytest
from PIL import Image

from longvision.files import read_metadata


def write_set(root, label):
    """Images as bright as the number of their labels, 12 that train and 6 that validate."""
    root.mkdir()
    lines = ["image,labels,split"]
    for number in range(18):
        labels = label(number)
        pixels = np.full((16, 16, 3), 60 + 90 * labels.count("|"), np.uint8)
        Image.fromarray(pixels + np.uint8(number)).save(root / f"{number}.png")
        lines.append(f"{number}.png,{labels},{'train' if number < 12 else 'val'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root / "labels.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("set") / "several", lambda n: "cat|dog" if n % 2 else "dog")


@pytest.fixture(scope="module")
def run(train, table, tmp_path_factory):
    """A run of several labels an image. Not to be written to."""
    answer = train("--source", "labels", "--data.path", table, "--runs", tmp_path_factory.mktemp("runs"))
    assert answer.code == 0, answer.err
    return answer


def test_a_run_says_that_an_image_may_have_several(run):
    assert run.out.splitlines()[-2].startswith("validation mAP ")
    assert read_metadata(run.run / "model.safetensors")["multilabel"] is True
    assert "multilabel: true" in (run.run / "config.yaml").read_text()
    assert "any number" in (run.run / "README.md").read_text()


def test_validate(run, longvision, table, tmp_path):
    answer = longvision("validate", run.run)
    assert answer.code == 0 and {"map", "f1", "auroc", "loss"} <= {line.split()[0] for line in answer.out.splitlines()}
    other = write_set(tmp_path / "one", lambda n: "dog")  # one label each is no reason to read it otherwise
    assert longvision("validate", run.run, "--data.path", other).code == 0


def test_predict_with_a_threshold(run, longvision, table):
    image = table.parent / "0.png"
    (row,) = json.loads(longvision("predict", run.run, image, "--json", "--threshold", 0).out)
    assert sorted(row["labels"]) == ["cat", "dog"] == sorted(row["probabilities"])
    (row,) = json.loads(longvision("predict", run.run, image, "--json", "--threshold", 1).out)
    assert row["labels"] == []
    answer = longvision("predict", run.run, image, "--threshold", 1)
    assert answer.code == 0 and "nothing above 1.00" in answer.out
    assert longvision("predict", run.run, image, "--threshold", 2).code == 2


def test_of_one_class_an_image_there_is_no_threshold(longvision, digits_run, table):
    answer = longvision("predict", digits_run, table.parent / "0.png", "--threshold", 0.5)
    assert answer.code == 2 and "--threshold" in answer.err


def test_one_label_an_image_is_the_usual_classification(train, tmp_path):
    answer = train("--source", "labels", "--data.path", write_set(tmp_path / "one", lambda n: "ab"[n % 2]))
    assert answer.code == 0 and answer.out.splitlines()[-2].startswith("validation accuracy ")
    assert "multilabel" not in read_metadata(answer.run / "model.safetensors")


def test_mixup_is_for_one_class_an_image(train, table):
    answer = train("--source", "labels", "--data.path", table, "--data.augment.mixup", 0.2)
    assert answer.code == 2 and "mixup" in answer.err


def test_a_run_keeps_what_a_label_is(run, longvision):
    answer = longvision("train", "--resume", run.run, "--trainer.max_epochs", 3, "--data.multilabel", "false")
    assert answer.code == 2 and "--data.multilabel" in answer.err


@pytest.mark.slow
def test_a_run_goes_on(train, longvision, table):
    begun = train("--source", "labels", "--data.path", table, "--trainer.max_epochs", 1)
    answer = longvision("train", "--resume", begun.run, "--trainer.max_epochs", 2)
    assert answer.code == 0, answer.err
    assert len((begun.run / "metrics.csv").read_text().splitlines()) == 3


def test_check_data(longvision, table, tmp_path):
    answer = longvision("check-data", "--source", "labels", "--data.path", table, "--data.size", 16)
    assert answer.code == 0 and "separated by |" in answer.out and (tmp_path / "data-1" / "samples.png").is_file()
