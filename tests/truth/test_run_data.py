"""A run knows its data: what has changed since is said and refused, what was held out stays held out."""

import json
import shutil

import numpy as np
import pytest

from longvision.data.changes import changes
from longvision.data.config import DigitsData, ScatteredDetectionData
from longvision.data.fingerprint import Fingerprint
from longvision.data.held_out import as_trained, held_out
from longvision.errors import UserError
from support.class_folders import draw, source_of


def rename(folder, old, new):
    for split in ("train", "val"):
        (folder / split / old).rename(folder / split / new)


def add_class(folder, name):
    for split in ("train", "val"):
        draw(folder / split / name / "0.png", f"{split}{name}")


def replace(path, content):
    """Other bytes, and as many, or one byte more."""
    old = path.read_bytes()
    path.write_bytes(old[:-20] + bytes(20) if content == "hash" else old + b"x")


NOTHING = ([], [])
CHANGES = [
    pytest.param(lambda root: None, *NOTHING, id="nothing"),
    pytest.param(lambda root: rename(root, "cat", "zebra"), ["cat", "zebra", "dog was 1, is 0"], [], id="renamed-last"),
    pytest.param(lambda root: rename(root, "cat", "bird"), ["classes cat are gone", "bird are new"], [], id="renamed"),
    pytest.param(lambda root: add_class(root, "bird"), ["bird are new", "cat was 0, is 1"], [], id="class-added-first"),
    pytest.param(lambda root: add_class(root, "yak"), ["yak are new"], [], id="class-added-last"),
    pytest.param(
        lambda root: draw(root / "train/cat/new.png", "x"), [], ["1 image added, training (train/cat/new.png)"],
        id="added-to-train",
    ),
    pytest.param(lambda root: draw(root / "val/dog/new.png", "x"), [], ["added, validation"], id="added-to-val"),
    pytest.param(lambda root: (root / "train/cat/0.png").unlink(), [], ["1 image gone, training"], id="gone"),
    pytest.param(
        lambda root: shutil.move(root / "val/cat/0.png", root / "train/cat/9.png"),
        ["1 image: validation before, training now (train/cat/9.png)"], ["added", "gone, validation"],
        id="held-out-image-renamed-and-trains",
    ),
    pytest.param(
        lambda root: shutil.copy(root / "val/cat/0.png", root / "train/dog/copy.png"),
        ["validation before, training now"], ["added"], id="copy-of-a-held-out-image-trains",
    ),
    pytest.param(
        lambda root: replace(root / "val/cat/0.png", "hash"), ["another content, validation (val/cat/0.png)"], [],
        id="held-out-image-replaced-by-one-of-its-size",
    ),
    pytest.param(
        lambda root: replace(root / "val/cat/0.png", "size"), ["another content, validation"], [],
        id="held-out-image-replaced",
    ),
    pytest.param(
        lambda root: replace(root / "train/cat/0.png", "size"), [], ["another content, training (train/cat/0.png)"],
        id="training-image-replaced",
    ),
    pytest.param(
        lambda root: replace(root / "train/cat/0.png", "hash"), [], ["another content, training (train/cat/0.png)"],
        id="training-image-replaced-by-one-of-its-size",
    ),
    pytest.param(
        lambda root: shutil.move(root / "train/cat/0.png", root / "val/cat/9.png"),
        ["1 image: training before, validation now (val/cat/9.png)"], ["added", "gone, training"],
        id="a-training-image-validates-now",
    ),
    pytest.param(
        lambda root: shutil.copy(root / "train/cat/0.png", root / "val/dog/copy.png"),
        ["training before, validation now"], ["added"], id="copy-of-a-training-image-validates",
    ),
    pytest.param(
        lambda root: shutil.move(root / "train/cat/0.png", root / "train/dog/9.png"), [],
        ["train/dog/9.png: cat, now dog"], id="an-image-of-another-class-now",
    ),
    pytest.param(
        lambda root: [file.rename(file.with_name("n" + file.name)) for file in sorted(root.glob("val/*/*"))],
        ["none of the 8 validation images is left"], ["added", "gone"], id="no-held-out-image-is-left",
    ),
    pytest.param(
        lambda root: (draw(root / "train/cat/7.png", "seven"), (root / "train/cat/7.png").unlink()), *NOTHING,
        id="added-and-taken-away",
    ),
]  # fmt: skip


@pytest.mark.parametrize("change, forbidden, allowed", CHANGES)
def test_what_has_changed(folder, change, forbidden, allowed):
    before = Fingerprint.of(source_of(folder))
    change(folder)
    found = changes(before, Fingerprint.of(source_of(folder)))
    for lines, expected in ((found.forbidden, forbidden), (found.allowed, allowed)):
        assert bool(lines) == bool(expected), lines
        assert [words for words in expected if words not in "; ".join(lines)] == [], lines


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("train/cat/unique.png", "val/cat/unique.png", "training before, validation now"),
        ("val/cat/unique.png", "train/cat/other.png", "validation before, training now"),
    ],
    ids=["trained", "held-out"],
)
def test_two_steps_hide_no_leak(folder, old, new, words):
    """Gone when the run went on once, back in another split when it goes on again: each step alone is allowed."""
    draw(folder / old, "u")
    first = Fingerprint.of(source_of(folder))
    (folder / old).rename(folder.parent / "kept.png")
    second = Fingerprint.of(source_of(folder))
    (folder.parent / "kept.png").rename(folder / new)
    now = Fingerprint.of(source_of(folder))
    assert not changes(first, second).forbidden and not changes(second, now).forbidden
    assert words in "; ".join(changes(second, now, [first]).forbidden)


def test_what_was_held_out_and_comes_back_is_held_out(alone):
    first = Fingerprint.of(source_of(alone))
    name = first.images["val"][0].name
    kept = (alone / name).rename(alone.parent / "kept.png")
    second = as_trained(source_of(alone), first)[1]
    assert name not in [image.name for image in second.images["val"]]
    kept.rename(alone / name)
    source, now = as_trained(source_of(alone), second, [first])
    assert name in names(source, "val") and name not in names(source, "train")
    assert not changes(second, now, [first]).forbidden and now == Fingerprint.of(source)


def test_held_out_images_that_were_drawn_and_are_all_gone(alone):
    before = Fingerprint.of(source_of(alone))
    for image in before.images["val"]:
        (alone / image.name).unlink()
    assert "none of the 4 validation" in "; ".join(changes(before, as_trained(source_of(alone), before)[1]).forbidden)


def test_a_held_out_image_in_the_place_of_a_training_image(folder):
    replace(folder / "val/dog/1.png", "size")
    before = Fingerprint.of(source_of(folder))
    shutil.copy(folder / "val/dog/1.png", folder / "train/cat/0.png")
    found = changes(before, Fingerprint.of(source_of(folder)))
    assert "validation before, training now (train/cat/0.png)" in "; ".join(found.forbidden)


def test_a_set_in_another_place_is_the_same(folder, tmp_path):
    before = Fingerprint.of(source_of(folder))
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert Fingerprint.of(source_of(tmp_path / "elsewhere")) == before


def test_it_is_read_as_it_was_written(folder, tmp_path):
    """Names may hold whatever a file system allows."""
    for name in ("a\nb.png", "naïve 名.png", b"\xff.png".decode("utf-8", "surrogateescape"), 'quote".png'):
        draw(folder / "train/cat/x.png", repr(name)).rename(folder / "train/cat" / name)
    before = Fingerprint.of(source_of(folder))
    before.write(tmp_path / "data.json")
    assert Fingerprint.read(tmp_path / "data.json") == before
    about = json.loads((tmp_path / "data.json").read_bytes().decode("utf-8", "surrogatepass"))["summary"]
    assert about["classes"] == ["cat", "dog"] and about["splits"]["val"]["of"] == {"cat": 4, "dog": 4}
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.json"):
        Fingerprint.read(tmp_path / "data.json")


def names(source, split):
    return [image.name for image in source.listed_images(split)]


@pytest.mark.parametrize("seed, more", [(0, 0), (5, 0), (0, 30), (5, 30)])
def test_what_was_drawn_stays_held_out(alone, seed, more):
    """Whatever was added, and whatever seed is given."""
    first = source_of(alone)
    before = Fingerprint.of(first)
    for number in range(more):
        draw(alone / "cat" / f"more{number}.png", f"more{number}")
    source, now = as_trained(source_of(alone, seed), before)
    assert names(source, "val") == names(first, "val")
    train = names(source, "train")
    assert train[:36] == names(first, "train")  # in the same order, for a run that goes on inside an epoch
    assert len(train) == 36 + more and not set(train) & set(names(source, "val"))
    found = changes(before, now)
    assert not found.forbidden and bool(found.allowed) == bool(more) and now == Fingerprint.of(source)
    evaluated = held_out(source_of(alone, seed), before, "val")
    assert names(evaluated, "val") == names(first, "val")
    image, label = evaluated.split("val")[0]
    assert np.array_equal(image, first.split("val")[0][0]) and label == first.split("val")[0][1]


def test_images_added_to_the_validation_folder_are_told_and_not_used(folder):
    before = Fingerprint.of(source_of(folder))
    draw(folder / "val/cat/new.png", "new")
    (folder / "val/dog/0.png").unlink()
    evaluated = held_out(source_of(folder), before, "val")
    assert len(evaluated.split("val")) == 7
    told = "; ".join(evaluated.notes)
    assert "1 of the 8 validation images" in told and "val/dog/0.png" in told
    assert "val/cat/new.png" in told and "not used" in told


def test_held_out_images_that_are_others_now_are_told(folder):
    before = Fingerprint.of(source_of(folder))
    draw(folder / "val/cat/0.png", "another")
    assert any("another content" in note for note in held_out(source_of(folder), before, "val").notes)
    shutil.rmtree(folder / "val")
    for name in ("cat", "dog"):
        draw(folder / "val" / name / "other.png", name)
    with pytest.raises(UserError, match="none of the 8 validation images"):
        held_out(source_of(folder), before, "val")


def test_sets_that_make_their_images():
    """A set with other options is told from it."""
    digits = Fingerprint.of(DigitsData().source())
    assert {split: len(images) for split, images in digits.images.items()} == {"train": 1293, "val": 144, "test": 360}
    assert len({image.name for images in digits.images.values() for image in images}) == 1797
    few, more, other = (
        Fingerprint.of(ScatteredDetectionData(pictures=count, seed=seed).source(), ["train", "val"])
        for count, seed in ((8, 0), (12, 0), (8, 1))
    )
    assert changes(few, more).forbidden == [] and "4 images added" in changes(few, more).allowed[0]
    assert few.digest("val") != other.digest("val")


def test_a_mask_that_is_a_link_to_nothing(tmp_path):
    from longvision.data.sources.mask_folder import MaskFolderSource

    (tmp_path / "classes.txt").write_text("a\nb")
    for number in range(4):
        draw(tmp_path / f"set/images/{number}.png", f"{number}")
    (tmp_path / "set/masks").mkdir()
    for number in range(4):
        (tmp_path / f"set/masks/{number}.png").symlink_to("nowhere.png")
    source = MaskFolderSource(tmp_path / "set", classes_file=str(tmp_path / "classes.txt"))
    labels = [image.label for image in Fingerprint.of(source).images["train"]]
    assert labels[0].endswith(".png, 0 bytes")


def test_images_that_cannot_be_read_count_in_other_splits_too(alone):
    for number in range(280):
        shutil.copy(alone / "cat/0.png", alone / f"cat/c{number}.png")
    (alone / "cat/0.png").write_bytes(b"x")
    first = source_of(alone)
    before = Fingerprint.of(first)
    again, _ = as_trained(source_of(alone, seed=5), before)
    assert [again.split(split).left_out for split in ("train", "val")] == [1, 0]
