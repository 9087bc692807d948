"""Files that appear whole or not at all, and what a weights file says of itself."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from longvision.errors import ExistingFileError, MissingFileError, UserError
from longvision.files import METADATA_KEY, find_weights, read_metadata, written_beside
from longvision.text import command_line


def test_a_file_appears_whole_and_alone(tmp_path):
    with written_beside(tmp_path / "a.txt") as path:
        path.write_text("half")
        assert not (tmp_path / "a.txt").exists() and path.suffix == ".txt" and path.parent == tmp_path
        path.write_text("whole")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "whole"}


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), written_beside(tmp_path / "a.txt", overwrite=True) as path:
        path.write_text("half")
        raise KeyError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}
    with written_beside(tmp_path / "a.txt", overwrite=True) as path:
        path.write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "new"}


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_another_process_made_meanwhile_stays(tmp_path, monkeypatch, links):
    """Also on a file system without hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    with written_beside(tmp_path / "b.txt") as path:
        path.write_text("alone")
    assert (tmp_path / "b.txt").read_text() == "alone"
    with pytest.raises(ExistingFileError, match=r"a\.txt"), written_beside(tmp_path / "a.txt") as path:
        path.write_text("mine")
        (tmp_path / "a.txt").write_text("theirs")
    assert (tmp_path / "a.txt").read_text() == "theirs" and len(list(tmp_path.iterdir())) == 2


def test_what_exists_is_refused_before_the_work(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ExistingFileError), written_beside(tmp_path / "a"):
        raise AssertionError("too late")


def test_two_writers_never_share_a_file(tmp_path):
    with written_beside(tmp_path / "a", overwrite=True) as one, written_beside(tmp_path / "a", overwrite=True) as two:
        assert one != two
        one.write_text("1")
        two.write_text("2")
    assert (tmp_path / "a").read_text() == "1"  # the last to end


def write(path, metadata):
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    safetensors.numpy.save_file({"w": np.zeros(2)}, path, {METADATA_KEY: text})
    return path


def test_metadata(tmp_path):
    metadata = {"grid": [4, 6], "classes": ["a"], "preprocess": {"channels": 1, "size": [8, 8], "mean": [0.5]}, "x": 1}
    assert read_metadata(write(tmp_path / "a.safetensors", metadata)) == metadata
    safetensors.numpy.save_file({"w": np.zeros(2)}, tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "b.safetensors") == {}


@pytest.mark.parametrize("metadata, named", [
    ({"grid": 8}, "grid=8"),
    ({"positions": 8}, "positions=8"),
    ({"grid": [4, 0]}, "grid="),
    ({"grid": [4.5, 2]}, "grid="),
    ({"grid": [True, 2]}, "grid="),
    ({"classes": "cat"}, 'classes="cat"'),
    ({"classes": [1, 2]}, "classes="),
    ({"preprocess": 3}, "preprocess=3"),
    ({"preprocess": {"channels": 3}}, "preprocess="),
    ({"cls_token": ["head"]}, "cls_token="),
    ([1], "JSON object"),
    ("{broken", "broken|Expecting"),
])  # fmt: skip
def test_malformed_metadata_is_named(tmp_path, metadata, named):
    with pytest.raises(UserError, match=rf"w\.safetensors.*({named})"):
        read_metadata(write(tmp_path / "w.safetensors", metadata))


def test_no_weights(tmp_path):
    with pytest.raises(MissingFileError, match=r"w\.safetensors"):
        read_metadata(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"w\.safetensors"):
        read_metadata(tmp_path / "w.safetensors")


def test_what_is_advised_can_be_typed(tmp_path):
    """A path with blanks stands in quotes."""
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").touch()
    with pytest.raises(UserError) as unfinished:
        find_weights(tmp_path / "my run")
    words = shlex.split(str(unfinished.value))
    assert words[-2:] == ["--resume", str(tmp_path / "my run")]
    assert shlex.split(command_line("predict", "my run", "x")) == ["longvision", "predict", "my run", "x"]


def test_metadata_is_read_without_torch(tmp_path):
    write(tmp_path / "a.safetensors", {"grid": [4, 6]})
    code = f"""
import sys
sys.modules["longvision_cli.main"] = sys  # as if the command had come first: no models are registered
from longvision.files import read_metadata
print(read_metadata({str(tmp_path / "a.safetensors")!r}), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "{'grid': [4, 6]} False", done.stderr
