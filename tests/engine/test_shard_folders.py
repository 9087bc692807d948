"""Checkpoints in shards on a disk that fails, and in processes that are killed."""

import errno
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("lightning")
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.checkpoint.api import CheckpointException

from longvision.engine import checkpoint_io
from longvision.engine import strategy as strategies
from longvision.engine.checkpoint_file import MANIFEST, is_whole, seal_folder
from longvision.engine.checkpoint_io import RunCheckpointIO
from longvision.engine.report import read_checkpoint
from longvision.engine.run import Run
from longvision.engine.strategy import ShardedStrategy, make_strategy
from longvision.errors import UnsavedError
from support.checkpoints import CONTENT, flipped, save, save_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return save_shards(tmp_path_factory.mktemp("checkpoints") / "last.ckpt")


@pytest.fixture
def alone(monkeypatch, shards):
    """The strategy in one process, whose shards are always the same, beside a file with the step."""

    def write(self, checkpoint, path, options):
        shutil.copytree(shards, path, dirs_exist_ok=True)
        (path / "meta.pt").write_text(checkpoint["step"])

    monkeypatch.setattr(FSDPStrategy, "save_checkpoint", write)
    monkeypatch.setattr(ShardedStrategy, "broadcast", lambda self, value: value)
    monkeypatch.setattr(ShardedStrategy, "is_global_zero", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    strategy = make_strategy("fsdp")
    strategy.checkpoint_io = RunCheckpointIO()
    return strategy


def write_steps(strategy, path, steps):
    path.parent.mkdir(parents=True, exist_ok=True)
    for step in steps:
        strategy.save_checkpoint({"step": step}, path)


def steps(run):
    return {path.name: (path / "meta.pt").read_text() for path in run.checkpoints.iterdir()}


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path, alone):
    run = Run(tmp_path)
    write_steps(alone, run.last, "123")
    write_steps(alone, run.best, "123")
    assert steps(run) == {"last.ckpt": "3", "previous.ckpt": "2", "best.ckpt": "3"}
    assert run.resume_from() == (run.last, [])


def test_a_damaged_folder_does_not_replace_the_one_before_it(tmp_path, alone):
    run = Run(tmp_path)
    write_steps(alone, run.last, "12")
    (run.last / "meta.pt").write_text("")
    alone.checkpoint_io = RunCheckpointIO()  # of another process
    write_steps(alone, run.last, "3")
    assert steps(run) == {"last.ckpt": "3", "previous.ckpt": "1"}


@pytest.mark.parametrize("moment", ["seal_folder", "replace_folder"])
def test_a_process_that_dies_before_the_name_leaves_what_was_there(tmp_path, alone, monkeypatch, moment):
    run = Run(tmp_path)
    for path in (run.last, run.best):
        write_steps(alone, path, "1")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(strategies, moment, Mock(side_effect=KeyboardInterrupt))
            write_steps(alone, path, "2")
    assert is_whole(run.last) and is_whole(run.best)
    assert steps(run) == {"last.ckpt": "1", "best.ckpt": "1"}
    write_steps(alone, run.last, "3")
    assert steps(run)["last.ckpt"] == "3"


def test_a_process_that_dies_between_the_names_leaves_the_best(tmp_path, alone, monkeypatch):
    run, rename = Run(tmp_path), Path.rename
    write_steps(alone, run.last, "1")
    write_steps(alone, run.best, "1")

    def die(path, target):
        if path.name == ".best.ckpt":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", die)
        write_steps(alone, run.best, "2")
    assert not run.best.exists()
    assert run.resume_from() == (run.last, [])
    assert is_whole(run.best) and steps(run)["best.ckpt"] == "1"
    write_steps(alone, run.best, "3")
    assert steps(run) == {"last.ckpt": "1", "best.ckpt": "3"}


def test_what_a_killed_process_left_behind_the_names_is_removed(tmp_path, alone):
    run = Run(tmp_path)
    for path in (run.last, run.best):
        write_steps(alone, path, "1")
        shutil.copytree(path, run.checkpoints / f".old-{path.name}")
    assert run.resume_from() == (run.last, [])
    assert steps(run) == {"last.ckpt": "1", "best.ckpt": "1"}


FULL = OSError(errno.ENOSPC, "No space left on device")
ENDED = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


def of_the_zip():
    """As torch raises it in the process whose disk is full; on its way to another it loses the disk's error."""
    error = RuntimeError(*ENDED.args)
    error.__context__ = FULL
    return error


FAILURES = [
    (CheckpointException("write", {1: (FULL, [])}), UnsavedError, "No space left"),
    (CheckpointException("write", {1: (ENDED, [])}), UnsavedError, "only a part"),
    (CheckpointException("plan", {1: (KeyError("model.weight"), [])}), KeyError, "model.weight"),
    (of_the_zip(), UnsavedError, "No space left"),  # of meta.pt
]


@pytest.mark.parametrize("failure, kind, words", FAILURES, ids=["disk", "zip", "bug", "first-alone"])
def test_a_save_that_fails_leaves_nothing_and_is_what_it_is(tmp_path, alone, monkeypatch, failure, kind, words):
    run, write = Run(tmp_path), FSDPStrategy.save_checkpoint
    write_steps(alone, run.last, "1")

    def fail(*arguments):
        write(*arguments)
        raise failure

    with monkeypatch.context() as patched, pytest.raises(kind, match=words) as raised:
        patched.setattr(FSDPStrategy, "save_checkpoint", fail)
        write_steps(alone, run.last, "2")
    assert ("last.ckpt" in str(raised.value)) == (kind is UnsavedError)
    assert steps(run) == {"last.ckpt": "1"}


@pytest.mark.parametrize("moment", ["remove", "seal_folder", "replace_folder"])
def test_where_the_first_device_fails_alone_the_others_are_told(tmp_path, alone, monkeypatch, moment):
    told, run = [], Run(tmp_path)
    monkeypatch.setattr(ShardedStrategy, "broadcast", lambda self, value: (told.append(value), value)[1])
    monkeypatch.setattr(strategies, moment, Mock(side_effect=FULL))
    with pytest.raises(UnsavedError, match=r"last\.ckpt.*No space left"):
        write_steps(alone, run.last, "1")
    kind, words = told[-1]
    assert kind is UnsavedError and "No space left" in words and not list(run.checkpoints.iterdir())


def test_another_device_hears_of_the_first_one_s_failure(tmp_path, alone, monkeypatch):
    said = iter([tmp_path / "last.ckpt", None, (UnsavedError, "UnsavedError: No space left")])
    monkeypatch.setattr(ShardedStrategy, "is_global_zero", False)
    monkeypatch.setattr(ShardedStrategy, "broadcast", lambda self, value: next(said))
    with pytest.raises(UnsavedError, match="No space left"):
        write_steps(alone, tmp_path / "last.ckpt", "1")


def test_what_a_run_goes_on_from_is_not_read_again_at_the_next_save(tmp_path, alone, monkeypatch):
    run = Run(tmp_path)
    write_steps(alone, run.last, "1")
    alone.checkpoint_io = RunCheckpointIO()  # of another process
    monkeypatch.setattr(FSDPStrategy, "load_checkpoint", lambda self, path: {"step": path})
    assert alone.load_checkpoint(run.last) == {"step": run.last}
    monkeypatch.setattr(checkpoint_io, "is_whole", Mock(side_effect=AssertionError))
    write_steps(alone, run.last, "2")
    assert steps(run) == {"last.ckpt": "2", "previous.ckpt": "1"}


def test_a_file_is_written_where_a_killed_process_left_shards(tmp_path, shards):
    shutil.copytree(shards, tmp_path / ".last.ckpt")
    assert is_whole(save(tmp_path / "last.ckpt"))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_gives_its_name_to_a_folder(tmp_path, alone):
    """Of a run that goes on in shards."""
    run = Run(tmp_path)
    save(run.last)
    save(run.best)
    write_steps(alone, run.last, "1")
    write_steps(alone, run.best, "1")
    assert run.previous.is_file() and run.last.is_dir() and run.best.is_dir()
    write_steps(alone, run.last, "2")
    assert steps(run) == {"last.ckpt": "2", "previous.ckpt": "1", "best.ckpt": "1"}


def test_shards_are_read(shards):
    assert is_whole(shards) and ".metadata" in json.loads((shards / MANIFEST).read_text())
    assert torch.equal(read_checkpoint(shards)["weight"], CONTENT["state_dict"]["weight"])


def test_a_folder_is_sealed_again_but_not_without_a_shard(tmp_path, shards):
    folder = shutil.copytree(shards, tmp_path / "last.ckpt")
    seal_folder(folder)
    assert is_whole(folder) and MANIFEST not in json.loads((folder / MANIFEST).read_text())
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(FileNotFoundError, match="__0_0"):
        seal_folder(folder)


def test_a_shard_that_is_not_in_sight_is_listed(tmp_path, shards, monkeypatch):
    """Another machine wrote it, and this one's list of the folder is older."""
    folder, every = shutil.copytree(shards, tmp_path / "last.ckpt"), Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: (file for file in every(path) if file.suffix != ".distcp"))
    seal_folder(folder)
    assert "__0_0.distcp" in json.loads((folder / MANIFEST).read_text())


@pytest.mark.parametrize("listed", ["[]", "null", "{}", "5", "{"])
def test_a_list_of_nothing_is_not_whole(tmp_path, shards, listed):
    folder = shutil.copytree(shards, tmp_path / "last.ckpt")
    (folder / MANIFEST).write_text(listed)
    assert not is_whole(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", MANIFEST])
@pytest.mark.parametrize("damage", [flipped(60), lambda path: path.write_bytes(b""), Path.unlink], ids=range(3))
def test_damaged_shards_give_way(tmp_path, shards, name, damage):
    run = Run(tmp_path)
    for path in (run.last, run.previous):
        shutil.copytree(shards, path)
    damage(run.last / name)
    assert not is_whole(run.last)
    taken, told = run.resume_from()
    assert taken == run.previous and str(run.last) in told[0]
