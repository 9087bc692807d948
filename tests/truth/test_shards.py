"""Tar files in WebDataset's layout: what is read as what, and what is refused with one sentence."""

import itertools
import json
import os

import numpy as np
import pytest

from longvision.data.duplicates import duplicates
from longvision.data.fingerprint import Fingerprint
from longvision.data.sources import tar_samples
from longvision.data.sources.base import Trained
from longvision.data.sources.folder import FolderSource
from longvision.data.sources.shards import ShardSource
from longvision.errors import UserError
from support.image_sets import coded
from support.tars import write_tar

JPEG = [coded(number, (8, 8)) for number in range(12)]


def samples(labels, first=0, ending="cls", images=JPEG):
    """Of these labels, numbered from `first`."""
    return [
        {"__key__": f"{number:04}", "jpg": images[number], ending: str(label)}
        for number, label in enumerate(labels, first)
    ]


def opened(root, labels="ab" * 5, **options):
    write_tar(root / "train-000.tar", samples(labels))
    write_tar(root / "val-000.tar", samples(labels[:2], 10))
    return ShardSource(root, **options)


def labels_of(source, split="train"):
    images = source.split(split)
    return [source.classes[images[row][1]] for row in range(len(images))]


@pytest.mark.parametrize("labels, ending, options, classes", [
    ("0101010101", "cls", {}, ["0", "1"]),
    (["dog", "cat"] * 5, "cls", {}, ["cat", "dog"]),
    (["dog\n", "cat\n"] * 5, "cls", {}, ["cat", "dog"]),
    (["--5", "5-"] * 5, "cls", {}, ["--5", "5-"]),
    (["7" * 5000, "8" * 20] * 5, "cls", {}, ["7" * 5000, "8" * 20]),
    ([json.dumps({"label": 1 - n % 2, "width": 8}) for n in range(10)], "json", {}, ["0", "1"]),
    ([json.dumps({"name": "ab"[n % 2]}) for n in range(10)], "json", {"label_key": "name"}, ["a", "b"]),
], ids=["numbers", "names", "line-ends", "no-numbers", "longer", "json", "json-by-another-key"])  # fmt: skip
def test_labels(tmp_path, labels, ending, options, classes):
    write_tar(tmp_path / "train-000.tar", samples(labels, ending=ending))
    write_tar(tmp_path / "val-000.tar", samples(labels[:2], 10, ending))
    source = ShardSource(tmp_path, **options)
    assert source.classes == classes
    said = [json.loads(one) if ending == "json" else one.strip() for one in labels]
    said = [str(one.get("label", one.get("name"))) if ending == "json" else one for one in said]
    assert labels_of(source) == said and labels_of(source, "val") == said[:2]


def test_cls_goes_before_json_and_other_files_are_let_be(tmp_path):
    more = {"json": '{"label": 7}', "seg.png": b"x", "txt": "a cat"}
    write_tar(tmp_path / "train-0.tar", [one | more for one in samples("0101010101")])
    source = ShardSource(tmp_path)
    assert source.classes == ["0", "1"] and source.draws_validation
    assert (len(source.split("train")), len(source.split("val"))) == (8, 2)


def test_names_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\nemu\n")
    assert labels_of(opened(tmp_path / "set", "0120120120", classes_file=tmp_path / "names.txt"))[:3] == [
        "cat", "dog", "emu",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"1 label outside the 3 classes.*train-000\.tar/0002: 3"):
        opened(tmp_path / "other", "0130120120", classes_file=tmp_path / "names.txt")


@pytest.mark.parametrize("names, labels, read", [
    ("012", "0120120120", "012"), ("123", "0120120120", "123"),
    ("210", "0120120120", None), ("357", "3573573573", None),
], ids=["the same", "a label that is no name", "both", "names alone"])  # fmt: skip
def test_names_that_are_numbers(tmp_path, names, labels, read):
    """Labels are places in the file of names, unless they could be names in it too."""
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = {"classes_file": tmp_path / "names.txt"}
    if read:
        assert "".join(labels_of(opened(tmp_path / "set", labels, **options))[:3]) == read
    else:
        with pytest.raises(UserError, match=rf"label {min(labels)} may mean"):
            opened(tmp_path / "set", labels, **options)


def test_numbers_are_read_as_when_the_model_was_trained(tmp_path):
    (tmp_path / "names.txt").write_text("1\n2\n3")
    options = {"classes_file": tmp_path / "names.txt"}
    assert labels_of(opened(tmp_path / "set", "12" * 5, **options, trained=Trained(["1", "2", "3"])))[:2] == ["2", "3"]
    with pytest.raises(UserError, match="label 1 may mean"):
        opened(tmp_path / "set", "12" * 5, **options, trained=Trained(["3", "2", "1"]))


def test_shards_are_one_split_in_order(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"imagenet-train-{number:02}.tar", samples("0101", 4 * number))
    write_tar(tmp_path / "imagenet-validation-0.tar", samples("01", 0))
    source = ShardSource(tmp_path, channels=1)
    assert [one.name for one in source.listed_images("train")] == [
        f"imagenet-train-{number // 4:02}.tar/{number:04}" for number in range(12)
    ]
    assert len(source.split("val")) == 2


def test_an_image_is_that_of_the_file_wherever_it_lies(tmp_path):
    """Pixels, and the mark by which a run knows it."""
    source = opened(tmp_path / "tar")
    for number, content in enumerate(JPEG[:10]):
        file = tmp_path / "folder/train" / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "folder/val/a").mkdir(parents=True)
    (tmp_path / "folder/val/a/0.jpg").write_bytes(JPEG[10])
    folder = FolderSource(tmp_path / "folder")
    marks = [{image.mark for image in Fingerprint.of(one, ["train"]).images["train"]} for one in (source, folder)]
    assert marks[0] == marks[1] and len(marks[0]) == 10
    images, tars = folder.split("train"), source.split("train")
    assert np.array_equal(np.asarray(images[0][0]), np.asarray(tars[0][0]))


def test_another_content_is_another_set_and_a_copy_in_two_splits_is_told(tmp_path):
    before = Fingerprint.of(opened(tmp_path))
    assert Fingerprint.of(opened(tmp_path)) == before
    write_tar(tmp_path / "train-000.tar", samples("ab" * 5, images=[*JPEG[:3], JPEG[10], *JPEG[4:]]))
    changed = ShardSource(tmp_path)
    assert Fingerprint.of(changed) != before
    (line,) = duplicates(changed)
    assert "train-000.tar/0003" in line and "val-000.tar/0010" in line


def test_an_evaluation_has_the_models_classes(tmp_path):
    source = opened(tmp_path, "ab" * 5, trained=Trained(["x", "b", "a"]))
    assert source.classes == ["x", "b", "a"] and labels_of(source)[:2] == ["a", "b"]
    with pytest.raises(UserError, match=r"outside the 2 classes x, b .*0000: a"):
        opened(tmp_path, "ab" * 5, trained=Trained(["x", "b"]))


def cut(path, size=700):
    path.write_bytes(path.read_bytes()[:-size] if size else path.read_bytes().rstrip(b"\0"))


def damage_a_header(path):
    content = bytearray(path.read_bytes())
    place = content.index(b"0003.jpg")
    content[place + 148 : place + 156] = b"\xff" * 8  # its checksum
    path.write_bytes(content)


REFUSED = {
    "a missing number": (lambda root: [write_tar(root / f"train-00{n}.tar", samples("ab", n)) for n in (0, 1, 3)],
                         r"train\* is missing \(number 2 of 0 to 3\)"),
    "one number twice": (lambda root: [write_tar(root / f"train-{n}.tar", samples("ab")) for n in ("1", "01")],
                         r"same number \(train-01\.tar, train-1\.tar\)"),
    "one sample in two files": (lambda root: write_tar(root / "train-001.tar", samples("ab", 4)),
                                r"two of its tar files hold \(0004 in train-000\.tar and train-001\.tar, 0005"),
    "cut inside a file": (lambda root: cut(root / "train-000.tar", 10240 + 1024), r"train-000\.tar is no tar .*is cut"),
    "cut before its end": (lambda root: cut(root / "train-000.tar", None), r"train-000\.tar is no tar .*is cut"),
    "damaged in the middle": (lambda root: damage_a_header(root / "train-000.tar"), "damaged .*no end of the archive"),
    "no tar file": (lambda root: (root / "train-000.tar").write_bytes(b"hello" * 500), "is no tar file"),
    "an image without a label": (lambda root: write_tar(root / "train-001.tar", [{"__key__": "x", "jpg": JPEG[0]}]),
                                 r"train-001\.tar has samples without a label \(x\)"),
    "a json without the key": (
        lambda root: write_tar(root / "train-001.tar", [{"__key__": "x", "jpg": JPEG[0], "json": '{"id": 1}'}]),
        r"samples without a label \(x\).*'label'.*--data\.label_key"),
    "a label without an image": (lambda root: write_tar(root / "train-001.tar", [{"__key__": "x", "cls": "a"}]),
                                 r"labels without an image \(x\)"),
    "two images": (
        lambda root: write_tar(root / "train-001.tar", [{"__key__": "x", "jpg": JPEG[0], "png": b"1", "cls": "a"}]),
        r"samples of several images \(x\)"),
    "a sample torn apart": (
        lambda root: write_tar(root / "train-001.tar", [*samples("ab"), {"__key__": "0000", "json": "{}"}]),
        r"samples in two places \(0000\)"),
    "a broken json": (
        lambda root: write_tar(root / "train-001.tar", [{"__key__": "x", "jpg": JPEG[0], "json": "{"}]),
        r"train-001\.tar/x\.json is no text in UTF-8, or no JSON"),
    "a label that is none": (
        lambda root: write_tar(root / "train-001.tar", [{"__key__": "x", "jpg": JPEG[0], "json": '{"label": [1]}'}]),
        r"x\.json has the label '\[1\]'"),
    "a class that training has not": (lambda root: write_tar(root / "val-001.tar", samples("c")),
                                      r"outside the 2 classes a, b .*val-001\.tar/0000: c"),
    "names and numbers": (lambda root: write_tar(root / "train-001.tar", samples("0", 11)), "names and class numbers"),
    "compressed": (lambda root: [file.rename(file.with_suffix(".tgz")) for file in root.iterdir()],
                   r"compressed tar files \(train-000\.tgz, val-000\.tgz\).*gunzip"),
    "one compressed": (lambda root: (root / "train-001.tar.gz").touch(), r"compressed .* \(train-001\.tar\.gz\)"),
    "compressed in a folder": (lambda root: (root / "test").mkdir() or (root / "test" / "0.TAR.GZ").touch(),
                               r"compressed .* \(test/0\.TAR\.GZ\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what, tmp_path):
    opened(tmp_path)
    spoil, said = REFUSED[what]
    spoil(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        ShardSource(tmp_path)
    assert "\n" not in str(refused.value)


def test_shards_that_are_called_as_no_split_and_are_compressed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part-0.tar.gz").touch()
    with pytest.raises(UserError, match=r"compressed .* \(data/part-0\.tar\.gz\)"):
        ShardSource(tmp_path)


@pytest.mark.parametrize("folder", ["", "data"])
def test_another_compressed_file_beside_the_shards_is_not_used(tmp_path, folder):
    (tmp_path / "originals.tar.gz").touch()
    source = opened(tmp_path / folder)
    assert any("originals.tar.gz" in note for note in ShardSource(tmp_path).notes)
    assert len(source.split("train")) == 10


@pytest.mark.parametrize("names, said", [
    (["train-000.tar", "train-001.tar"], None), (["train-001.tar", "train-002.tar"], "train* begin with number 1 ("),
    (["train-3.tar"], "train* begin with number 3 (train-3.tar)"), (["train2017.tar"], None),
    (["train-000001-of-000002.tar", "train-000002-of-000002.tar"], None),
    (["train/07.tar"], "train/* begin with number 7"),
], ids=["from-0", "from-1", "one", "a-year", "counted-from-1", "a-folder"])  # fmt: skip
def test_a_row_that_may_have_lost_its_first_shard_is_told(tmp_path, names, said):
    for number, name in enumerate(names):
        write_tar(tmp_path / name, samples("ab", 2 * number))
    notes = [note for note in ShardSource(tmp_path).notes if "begin with number" in note]
    assert len(notes) == bool(said) and all(said in note for note in notes)


def test_an_empty_tar_file_is_told(tmp_path):
    opened(tmp_path)
    write_tar(tmp_path / "train-001.tar", [])
    source = ShardSource(tmp_path)
    assert [note for note in source.notes if f"{tmp_path / 'train-001.tar'} holds no files" in note]
    assert len(source.split("train")) == 10


@pytest.mark.parametrize("labels, said", [
    ("0" * 10, "1 class: two are needed"), ("a" * 10, "1 class: two are needed"), (["0", "10"] * 5, "label 10 in 10"),
])  # fmt: skip
def test_labels_that_make_no_classes(tmp_path, labels, said):
    with pytest.raises(UserError, match=said):
        opened(tmp_path, labels)


def test_classes_without_a_training_image_are_told(tmp_path):
    assert "no training image is of 1 class: 1" in opened(tmp_path, "02" * 5).notes


def test_keys_may_begin_anew_in_each_file(tmp_path):
    opened(tmp_path)
    write_tar(tmp_path / "train-001.tar", samples("ab", images=JPEG[::-1]))
    assert len(ShardSource(tmp_path).split("train")) == 12
    assert len({one.name for one in ShardSource(tmp_path).listed_images("train")}) == 12


def test_a_large_set_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_samples, "WORTH_KEEPING", 5)
    monkeypatch.setattr("longvision.cache.user_cache", lambda: tmp_path / "cache")
    root = tmp_path / "set"
    write_tar(root / "train-001.tar", [one | {"__key__": f"new/{one['__key__']}"} for one in samples("ab", 10)])
    write_tar(root / "train-002.tar", [{"__key__": "readme", "txt": "how they were taken"}])
    before = opened(root)
    (kept,) = (tmp_path / "cache/tar").iterdir()  # two validation images are not worth it
    notes = []
    with monkeypatch.context() as closed:
        closed.setattr(tar_samples, "_read_samples", None)
        after = tar_samples.read_samples(before.files["train"], "label", notes)
    assert after == [tar_samples._read_samples(file, "label", []) for file in before.files["train"]]
    assert notes and notes[0] in before.notes
    write_tar(root / "train-001.tar", samples("b", 11))
    assert len(ShardSource(root).items["train"]) == 11
    (new,) = (tmp_path / "cache/tar").iterdir()
    assert new != kept
    new.write_text("{")
    assert len(ShardSource(root).items["train"]) == 11


@pytest.mark.skipif(os.name == "nt", reason="Windows tells no time of a change")
def test_a_corrected_label_is_read_though_size_and_time_are_the_same(tmp_path, monkeypatch):
    """As of a tar file that is made reproducibly."""
    monkeypatch.setattr(tar_samples, "WORTH_KEEPING", 5)
    monkeypatch.setattr("longvision.cache.user_cache", lambda: tmp_path / "cache")
    file, sizes = tmp_path / "train-000.tar", set()
    write_tar(tmp_path / "val-000.tar", samples("ab", 10))
    for labels in ("ab" * 5, "ba" * 5):
        write_tar(file, samples(labels))
        os.utime(file, (0, 0))
        sizes.add(file.stat().st_size)
        assert "".join(labels_of(ShardSource(tmp_path))) == labels
    assert len(sizes) == 1


def test_what_another_version_kept_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_samples, "WORTH_KEEPING", 5)
    monkeypatch.setattr("longvision.cache.user_cache", lambda: tmp_path / "cache")
    source = opened(tmp_path / "set")
    (kept,) = (tmp_path / "cache/tar").iterdir()
    kept.write_text('{"samples": [[]], "notes": []}')
    monkeypatch.setattr(tar_samples, "FORMAT", tar_samples.FORMAT + 1)
    assert len(ShardSource(tmp_path / "set").items["train"]) == len(source.items["train"]) == 10


def test_a_file_that_ends_early_later_costs_its_images_alone(tmp_path):
    images = opened(tmp_path).split("train")
    cut(tmp_path / "train-000.tar", 10240 + 1024)
    unread = []
    for row, name in itertools.product(range(len(images)), [tmp_path / "train-000.tar"]):
        try:
            images[row]
        except UserError as error:
            unread.append(str(error))
            assert str(name) in str(error)
    assert 0 < len(unread) < 10 and "cut short" in unread[-1]
