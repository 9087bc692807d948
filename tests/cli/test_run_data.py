"""What a run knows of its data, at the commands: no figure is of images that trained without a word."""

import json
import os
import shutil

import pytest
import yaml

from longvision.engine.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, images, train):
    """A run on class folders alone, by a relative path, that validated nothing. -> its folder and its set. Not to be
    written to."""
    place = tmp_path_factory.mktemp("drawn")
    shutil.copytree(images / "train", place / "set")
    here = os.getcwd()
    os.chdir(place)
    try:
        answer = train("-c", "folder", "--data.path", "set", "--runs", place, "--trainer.limit_val_batches", 0)
    finally:
        os.chdir(here)
    assert answer.code == 0, answer.err
    return answer.run, place / "set"


def held_out(run):
    return [image.name for image in Run.open(run).fingerprint().images["val"]]


def notes(answer):
    assert answer.code == 0, answer.err
    return "\n".join(line for line in answer.out.splitlines() if line.startswith("note: "))


def test_evaluated_from_another_folder(longvision, drawn):
    """Of a run that validated nothing everything is evaluated."""
    run, folder = drawn
    answer = longvision("validate", run)
    assert answer.out.splitlines()[0] == f"2 images of the val split of {folder}"
    assert not notes(answer)


@pytest.mark.parametrize(
    "take, first, told",
    [
        ("all", "2 images of the held-out images of", "is the set that the run was trained on: the 2 images"),
        ("trained", "14 images of", "was trained on 14 of these 14 images"),
        ("held out", "2 images of", "these images are those that the run held out"),
    ],
)
def test_evaluated_on_its_own_images_in_another_place(longvision, drawn, tmp_path, take, first, told):
    run, folder = drawn
    shutil.copytree(folder, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("*/*"):
        if take != "all" and (str(file.relative_to(tmp_path / "copy")) in held_out(run)) == (take == "trained"):
            file.unlink()
    answer = longvision("validate", run, "--data.path", "copy")
    assert answer.out.startswith(first) and told in notes(answer)


def test_its_data_is_gone(longvision, drawn, tmp_path):
    run, folder = drawn
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    for path, words in ((str(folder.parent / "gone"), "gone, the data of run"), ("own", "relative to the folder")):
        content = yaml.safe_load(config.read_text())
        content["data"]["path"] = path
        config.write_text(yaml.safe_dump(content))
        answer = longvision("validate", "run")
        assert answer.code == 2 and words in answer.err and "--data.path" in answer.err


def test_without_its_data_file(longvision, drawn, images, tmp_path):
    run, _ = drawn
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/data.json").unlink()
    assert "run has no data.json" in notes(longvision("validate", "run"))
    assert "whether it was trained on these" in notes(longvision("validate", "run", "--data.path", images / "val"))


def test_a_new_run_from_its_weights_holds_out_the_same_images(train, drawn):
    run, folder = drawn
    words = ["-c", "folder", "--data.path", folder, "--data.seed", 7, "--model.pretrained", run / "model.safetensors"]
    answer = train(*words)
    assert "2 of the 2 validation images are those that" in notes(answer)
    assert held_out(answer.run) == held_out(run)


def test_what_training_images_held_is_written_down(longvision, drawn):
    run, _ = drawn
    assert json.loads((run / "data.json").read_text())["summary"]["values"] == [["uint8", 255.0, 255.0]]
    from longvision.inference.description import read_description

    assert read_description(run / "model.safetensors").input.seen == (("uint8", 255.0, 255.0),)


@pytest.mark.parametrize(
    "words, told",
    [
        (("--runs", "x"), "leave --runs out"),
        (("--data.range", "[0,9]"), "begun with None"),
        (("--data.mean", "[0.1,0.2,0.3]"), "--data.mean"),
        (("--data.seed", 7), "begun with 0"),
        (("--seed", 3), "leave it out"),
    ],
    ids=["runs", "range", "mean", "seed-of-the-data", "seed"],
)
def test_options_that_would_make_it_another_run(longvision, drawn, words, told):
    answer = longvision("train", "--resume", drawn[0], *words)
    assert answer.code == 2 and told in answer.err


@pytest.mark.slow
def test_other_options_are_told_and_noted_once_they_have_trained(longvision, stopped_run, stop):
    command = ["train", "--resume", stopped_run, "--trainer.precision", "bf16-mixed", "--allow-changed-config"]
    assert stop(6, lambda: longvision(*command), "on_train_batch_start").code == 130
    assert len(Run.open(stopped_run).configs()) == 1
    answer = longvision(*command)
    assert "goes on with --trainer.precision bf16-mixed, it was 32-true" in notes(answer)
    assert yaml.safe_load(Run.open(stopped_run).configs()[1].read_text())["trainer"]["precision"] == "bf16-mixed"


def test_a_file_that_is_not_written_is_refused(longvision, drawn):
    run, folder = drawn
    answer = longvision("predict", run, folder, "--json", "--out", "x")
    assert answer.code == 2 and "--out" in answer.err
