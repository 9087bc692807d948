"""Checkpoints on a disk that fails, and in a process that is killed."""

import io
import resource
import signal

import pytest
import torch

pytest.importorskip("lightning")
from longvision.engine import checkpoint_io
from longvision.engine.checkpoint_file import SEAL, is_whole
from longvision.engine.checkpoint_io import RunCheckpointIO
from longvision.engine.run import Run
from longvision.errors import UnsavedError
from support.checkpoints import CONTENT, DAMAGES, flipped, save


def read(path):
    return torch.load(path, weights_only=True)["step"]


def write(saver, path, *steps):
    for step in steps:
        saver.save_checkpoint({"step": step}, path)


def test_torch_reads_what_is_written(tmp_path):
    loaded = torch.load(save(tmp_path / "new" / "last.ckpt"), weights_only=True)
    assert loaded["epoch"] == 3 and torch.equal(loaded["state_dict"]["weight"], torch.arange(300.0))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]


def test_every_bit_and_every_byte_that_is_missing_is_seen_or_does_no_harm(tmp_path):
    path = tmp_path / "x.ckpt"
    whole = save(path).read_bytes()
    assert is_whole(path)
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert not is_whole(path) or len(whole) - SEAL <= place < len(whole) - 32, place  # in the mark
        path.write_bytes(whole[:place])
        assert not is_whole(path) or torch.load(io.BytesIO(whole[:place]), weights_only=True)["epoch"] == 3, place


def test_of_earlier_versions(tmp_path):
    """They have no checksum but the zip's."""
    path = tmp_path / "x.ckpt"
    torch.save(CONTENT, path)
    assert is_whole(path)
    flipped(1000)(path)
    assert not is_whole(path)


def test_the_two_newest_are_there(tmp_path):
    run = Run(tmp_path)
    write(RunCheckpointIO(), run.last, 1, 2, 3)
    assert (read(run.last), read(run.previous)) == (3, 2)
    write(RunCheckpointIO(), run.best, 1, 2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_does_not_replace_the_one_before_it(tmp_path, damage):
    run = Run(tmp_path)
    write(RunCheckpointIO(), run.last, 1, 2)
    damage(run.last)
    write(RunCheckpointIO(), run.last, 3)
    assert (read(run.last), read(run.previous)) == (3, 1)


@pytest.fixture
def full_disk():
    """Files may not grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 300, 20000, 40600], ids=["at-once", "in-the-head", "in-a-tensor", "at-the-end"])
def test_a_full_disk_leaves_what_was_there(tmp_path, full_disk, size):
    run, saver = Run(tmp_path), RunCheckpointIO()
    write(saver, run.last, 1, 2)
    full_disk(size)
    with pytest.raises(UnsavedError, match=r"last\.ckpt.*File too large"):
        saver.save_checkpoint({"weight": torch.zeros(10000)}, run.last)
    assert (read(run.last), read(run.previous)) == (2, 1)
    assert len(list(run.checkpoints.iterdir())) == 2


@pytest.mark.parametrize("step", ["seal", "replace_durably"])
def test_a_process_that_dies_before_the_name_leaves_what_was_there(tmp_path, monkeypatch, step):
    run, saver = Run(tmp_path), RunCheckpointIO()
    write(saver, run.last, 1, 2)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_io, step, die)
    with pytest.raises(KeyboardInterrupt):
        write(saver, run.last, 3)
    assert (read(run.last), read(run.previous)) == (2, 1)
    assert is_whole(run.last) and is_whole(run.previous)


def test_a_bug_keeps_its_traceback(tmp_path):
    with pytest.raises(AttributeError):
        RunCheckpointIO().save_checkpoint({"x": lambda: 0}, tmp_path / "x.ckpt")
