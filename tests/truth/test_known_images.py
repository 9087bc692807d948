"""A run's own images are known in other places, and in other runs: nothing that trained is evaluated without a word."""

import shutil

import pytest

from longvision.data.config import FolderData
from longvision.data.fingerprint import Fingerprint
from longvision.data.held_out import unseen_by_run, unseen_by_weights
from longvision.data.sources.base import Trained
from longvision.engine.run_data import choose_split
from support.class_folders import draw, source_of


def more_cats(root, count=30):
    for number in range(count):
        draw(root / "cat" / f"more{number}.png", f"more{number}")


def without_the_held_out(root, run):
    for image in run.images["val"]:
        (root / image.name).unlink()


@pytest.mark.parametrize(
    "seed, change, kept, told",
    [
        (0, None, 4, "4 of the 4 validation images are those that RUN held out"),
        (5, None, 4, "4 of the 4"),
        (5, lambda root, run: more_cats(root), 4, "the others are drawn from images that it did not have"),
        (5, lambda root, run: root.rename(root.parent / "moved"), 4, "4 of the 4"),
        (5, lambda root, run: (root / "cat").rename(root / "katze"), 4, "4 of the 4"),
        (5, without_the_held_out, 0, "trained the weights of RUN"),
        (0, lambda root, run: [draw(file, f"other{file}") for file in root.glob("*/*")], 0, ""),
    ],
    ids=["same", "another-seed", "added", "moved", "other-names", "nothing-held-out-is-left", "another-set"],
)
def test_what_weights_have_not_seen_stays_held_out(alone, seed, change, kept, told):
    """A new run on the same set would draw others, which the weights know."""
    run = Fingerprint.of(source_of(alone))
    if change:
        change(alone, run)
    root = alone if alone.exists() else alone.parent / "moved"
    source, now = unseen_by_weights(source_of(root, seed), [run], "RUN")
    assert now == Fingerprint.of(source)
    trained = run.keys("train") & now.keys("val")
    assert len(run.keys("val") & now.keys("val")) == kept and bool(trained) == ("trained the weights" in told)
    assert sum(map(len, now.images.values())) == sum(map(len, Fingerprint.of(source_of(root)).images.values()))
    assert (told in "; ".join(source.notes)) and bool(source.notes) == bool(told)
    assert kept == len(now.images["val"]) or "others" in told or not kept


def test_weights_that_have_seen_the_validation_folder(folder):
    run = Fingerprint.of(source_of(folder))
    shutil.copy(folder / "train/cat/0.png", folder / "val/cat/new.png")
    source, now = unseen_by_weights(source_of(folder), [run], "RUN")
    assert len(now.images["val"]) == 9 and "1 of the 9 validation images trained the weights" in source.notes[0]


@pytest.mark.parametrize(
    "take, images, told",
    [
        pytest.param("*", 4, "is the set that the run was trained on: the 4 images", id="all"),
        pytest.param("cat/1*", 11, "was trained on", id="a-part"),
        pytest.param("held out", 4, "those that the run held out", id="held-out"),
        pytest.param("trained", 36, "was trained on 36 of these 36", id="trained"),
        pytest.param("", 1, "", id="others"),
    ],
)
def test_a_set_elsewhere_that_the_run_knows(alone, tmp_path, take, images, told):
    run = Fingerprint.of(source_of(alone))
    split = {"held out": "val", "trained": "train"}.get(take)
    files = [alone / image.name for image in run.images[split]] if split else alone.glob(take or "nothing")
    for file in files:
        files = file.rglob("*.png") if file.is_dir() else [file]
        for each in files:
            (tmp_path / "new" / each.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(each, tmp_path / "new" / each.parent.name / f"copy{each.name}")
    if not take:
        draw(tmp_path / "new/cat/new.png", "new")
    source = FolderData(str(tmp_path / "new")).evaluation_source(Trained(["cat", "dog"]))
    source, is_own = unseen_by_run(choose_split(source, None)[0], "val", [run])
    assert len(source.split("val")) == images and is_own == (take == "*")
    assert (told in "; ".join(source.notes)) and bool(source.notes) == bool(told)
