"""Links, entries that cannot be read, and names: what a listing follows, leaves out and tells."""

import os
import unicodedata

import pytest

from longvision.data.io.images import find_images
from longvision.data.io.listing import files_below, list_files
from longvision.data.sources.folder import FolderSource
from longvision.errors import UserError
from support.trees import plant

# words of `plant` -> the files found below `set`, and words of the problems
LINKS = {
    "a link to a folder": (["set/a.png", "elsewhere/b.png", "set/more -> ../elsewhere"], ["a.png", "more/b.png"], []),
    "a link to a file": (["set/a.png", "b.png", "set/c.png -> ../b.png"], ["a.png", "c.png"], []),
    "a link to the folder itself": (["set/a.png", "set/loop -> ."], ["a.png"], ["set/loop"]),
    "a link to the parent": (["set/a.png", "other/b.png", "set/up -> .."], ["a.png"], ["set/up"]),
    "a link to itself": (["set/a.png", "set/self -> self"], ["a.png", "self"], []),
    "a link to nothing": (["set/a.png", "set/gone.png -> nowhere.png"], ["a.png", "gone.png"], []),
    "two folders that link to each other": (
        ["set/a/1.png", "set/b/2.png", "set/a/to -> ../b", "set/b/to -> ../a"],
        ["a/1.png", "b/2.png"],
        ["set/a/to", "set/b/to"],
    ),
    "two links to one folder": (["out/1.png", "set/x -> ../out", "set/y -> ../out"], ["x/1.png"], ["set/y"]),
}


@pytest.mark.parametrize(("words", "files", "problems"), LINKS.values(), ids=LINKS)
def test_links(tmp_path, words, files, problems):
    plant(tmp_path, *words)
    found = list_files(tmp_path / "set")
    assert [os.path.relpath(file, tmp_path / "set") for file in found.files] == files
    assert len(found.problems) == len(problems)
    assert all(place in problem for place, problem in zip(problems, found.problems))


def test_what_the_commands_wrote_into_the_set_is_no_part_of_it(tmp_path):
    """`cd SET; longvision train --data.path .` makes runs/ beside the class folders: once a class, silently."""
    outputs = ["runs/one/config.yaml", "runs/one/curves.png", "data-1/samples.png", "predictions-2/objects.json"]
    plant(tmp_path, "cat/5", "dog/5", *outputs, "predictions-2/0.png")
    assert FolderSource(tmp_path).classes == ["cat", "dog"]
    assert len(files_below(tmp_path)) == 10


def test_a_class_may_be_called_as_an_output(tmp_path):
    plant(tmp_path, "runs/5", "data-1/5", "predictions-2/5")
    assert FolderSource(tmp_path).classes == ["data-1", "predictions-2", "runs"]


def test_a_set_that_is_a_link_itself(tmp_path):
    plant(tmp_path, "real/cat/5", "real/dog/5", "set -> real")
    assert len(files_below(tmp_path / "set")) == 10
    assert FolderSource(tmp_path / "set").classes == ["cat", "dog"]


def test_a_folder_that_cannot_be_read_costs_itself_alone(tmp_path, monkeypatch):
    plant(tmp_path, "cat/5", "cat/private/3", "dog/5")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "private":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = FolderSource(tmp_path)
    assert len(source.listed["train"]) == 10
    assert any("private" in note and "Permission denied" in note for note in source.notes)


def test_a_pipe_is_not_waited_for(tmp_path):
    plant(tmp_path, "set/a.png")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    found = list_files(tmp_path / "set")
    assert [os.path.basename(file) for file in found.files] == ["a.png"] and "pipe.png" in found.problems[0]


def test_predict_is_told_what_cannot_be_listed(tmp_path):
    plant(tmp_path, "set/a.png", "set/loop -> ../set")
    with pytest.warns(UserWarning, match="loop"):
        assert find_images([tmp_path / "set"]) == [tmp_path / "set" / "a.png"]


def test_a_path_too_long_does_not_exist(tmp_path):
    for call in (lambda path: find_images([path]), FolderSource):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            call(tmp_path / ("x" * 300))


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path):
    source = FolderSource(plant(tmp_path, "cat/100", "dog/100", "cat/gone.png -> nowhere.png"))
    with pytest.warns(UserWarning, match=r"cat/gone\.png"):
        assert len(source.split("train")) + len(source.split("val")) == 200


@pytest.mark.parametrize("name", ["naïve 🐱 ‮rtl", "-c", "a,b;\"c'", "#1%20$x^{2}", "tab\tline\nend", "猫", "x" * 255])
def test_class_folders_of_any_name(tmp_path, name):
    source = FolderSource(plant(tmp_path, f"{name}/5", "dog/5"))
    assert name in source.classes and len(source.classes) == 2


def test_a_name_that_is_no_utf_8_is_escaped(tmp_path):
    os.makedirs(os.path.join(os.fsencode(tmp_path), b"caf\xe9"))
    plant(tmp_path, "dog/5", "cafe/5")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9", b"\xff.png"), "wb") as file:
        file.write((tmp_path / "dog" / "0.png").read_bytes())
    source = FolderSource(tmp_path)
    assert source.classes == ["caf\\xe9", "cafe", "dog"]
    assert len(source.split("train")) == 9  # the single image of one class trains


def test_one_name_spelled_in_two_ways_is_one_class(tmp_path):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    plant(tmp_path, f"a/train/{apart}/3", "a/train/dog/3", f"a/val/{composed}/3")
    source = FolderSource(tmp_path / "a")
    assert source.classes == [composed, "dog"] and len(source.split("val")) == 3
    plant(tmp_path, f"b/{composed}/3", f"b/{apart}/3", "b/dog/3")
    with pytest.raises(UserError, match=r"2 folders called café.*'cafe\\u0301' and 'caf\\xe9'"):
        FolderSource(tmp_path / "b")


@pytest.mark.parametrize("ending", [".JPG", ".Jpeg", ".PNG", ".TIF", "", ".jpg_large", ".png.orig"])
def test_endings_do_not_decide_what_is_an_image(tmp_path, ending):
    plant(tmp_path, "cat/9", "dog/9")
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / f"photo{ending}")
    source = FolderSource(tmp_path)
    assert len(source.split("train")) + len(source.split("val")) == 18
