"""Several processes of a machine: one of them lists the data, and all have what it found."""

import errno
import os
import threading
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from longvision.data import index
from longvision.data.fingerprint import Fingerprint
from longvision.data.index import found_by_one, hand_over
from longvision.data.sources.folder import FolderSource
from longvision.errors import UserError
from support.class_folders import in_splits

STARTED = {
    "torchrun": ({"TORCHELASTIC_RUN_ID": "none"}, "LOCAL_RANK"),
    "slurm": ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "SLURM_LOCALID"),
}


@pytest.fixture(params=STARTED)
def as_rank(request, monkeypatch):
    variables, rank = STARTED[request.param]
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", index.HANDED_OVER):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return lambda number: monkeypatch.setenv(rank, str(number))


def never():
    raise AssertionError("this process lists the data itself")


def raises(error):
    def find():
        raise error

    return find


def test_one_finds_and_the_others_read(as_rank, tmp_path):
    as_rank(0)
    assert found_by_one(lambda: ["a", 1], tmp_path / "runs") == ["a", 1]
    for rank in (1, 2):
        as_rank(rank)
        assert found_by_one(never, tmp_path / "runs") == ["a", 1]


def test_the_others_wait(as_rank, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PAUSE", 0.01)
    as_rank(1)
    found = []
    other = threading.Thread(target=lambda: found.append(found_by_one(never, tmp_path)))
    other.start()
    other.join(0.05)
    assert other.is_alive()
    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    other.join()
    assert found == [5]


def test_the_first_process_looks_anew_and_takes_away_what_was_left_long_ago(as_rank, tmp_path):
    (tmp_path / ".index-old").touch()
    (tmp_path / ".index-new").touch()
    os.utime(tmp_path / ".index-old", (0, 0))
    as_rank(0)
    assert [found_by_one(partial(int, number), tmp_path) for number in "12"] == [1, 2]
    assert not (tmp_path / ".index-old").exists() and (tmp_path / ".index-new").exists()


def test_what_another_job_left_is_not_read(as_rank, tmp_path, monkeypatch):
    as_rank(0)
    found_by_one(lambda: 1, tmp_path)
    as_rank(1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT" if "LOCAL_RANK" in os.environ else "SLURM_STEP_ID", "1")
    monkeypatch.setattr(index, "PATIENCE", 0)
    with pytest.raises(UserError, match=r"\.index-.* in 0 s"):
        found_by_one(never, tmp_path)


@pytest.mark.parametrize("find", [int, raises(ZeroDivisionError())], ids=["found", "failed"])
def test_what_is_left_when_the_first_process_ended(find, as_rank, tmp_path, monkeypatch):
    """What it found is not, for a job that begins later; why it failed is, for one that looks seldom."""
    at_exit = []
    monkeypatch.setattr(index.atexit, "register", lambda *call: at_exit.append(partial(*call)))
    as_rank(0)
    with suppress(ZeroDivisionError):
        found_by_one(find, tmp_path)
    for call in at_exit:
        call()
    as_rank(1)
    monkeypatch.setattr(index, "PATIENCE", 0)
    with pytest.raises(UserError, match="wrote no list" if find is int else "ZeroDivisionError"):
        found_by_one(never, tmp_path)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system tells no process's start")
def test_a_parent_is_told_from_an_earlier_one_of_its_number(monkeypatch):
    """As in a container that is started again."""
    stat = "7 (a (strange) name) S " + " ".join(map(str, range(1, 50)))  # of which the start is the 22nd
    monkeypatch.setattr(os, "getppid", lambda: 7)
    monkeypatch.setattr(Path, "read_bytes", lambda path: {"/proc/7/stat": stat.encode()}[str(path)])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    before = index._job()
    assert index._parent() == "7-19" and index._job() == before
    stat = stat.replace(" 19 ", " 2019 ")
    assert index._job() != before


@pytest.mark.parametrize("kind", [UserError, ZeroDivisionError, KeyboardInterrupt])
def test_a_process_that_fails_ends_all(kind, as_rank, tmp_path):
    as_rank(0)
    with pytest.raises(kind, match="no images"):
        found_by_one(raises(kind("no images")), tmp_path)
    as_rank(1)
    with pytest.raises(UserError, match="no images"):
        found_by_one(never, tmp_path)


@pytest.mark.parametrize("other", [False, True], ids=["under-another-name", "of-another-user"])
def test_a_file_of_another_user_is_not_read(other, as_rank, tmp_path, monkeypatch):
    """It could run anything. Root is called nobody on some disks of a network, all that it writes there."""
    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    as_rank(1)
    (place,) = tmp_path.iterdir()
    monkeypatch.setattr(index, "_owner", lambda file: 65535 - (other and file.name == str(place)))
    with pytest.raises(UserError, match="another user's") if other else nullcontext():
        assert found_by_one(never, tmp_path) == 5


def test_a_file_of_another_user_is_named_where_no_file_can_be_made(as_rank, tmp_path, monkeypatch):
    def denied(**_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    as_rank(1)
    monkeypatch.setattr(os, "getuid", lambda: -1, raising=False)
    monkeypatch.setattr(index, "TemporaryFile", denied)
    with pytest.raises(UserError, match="another user's"):
        found_by_one(never, tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="files have no modes")
def test_a_file_that_others_may_write_is_not_read(as_rank, tmp_path):
    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    (place,) = tmp_path.iterdir()
    place.chmod(0o620)
    as_rank(1)
    with pytest.raises(UserError, match=f"{place.name}.*others may write"):
        found_by_one(never, tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_not_waited_for(as_rank, tmp_path):
    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    (place,) = tmp_path.iterdir()
    place.unlink()
    os.mkfifo(place)
    writer = threading.Timer(5, place.write_bytes, (b"",))  # ends what waits
    writer.daemon = True
    writer.start()
    as_rank(1)
    with pytest.raises(UserError, match=f"{place.name} is no file"):
        found_by_one(never, tmp_path)
    writer.cancel()


def test_a_folder_of_its_name_is_told(as_rank, tmp_path):
    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    (place,) = tmp_path.iterdir()
    place.unlink()
    place.mkdir()
    with pytest.raises(UserError, match=place.name):
        found_by_one(never, tmp_path)


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system follows links")
def test_a_link_is_not_followed(as_rank, tmp_path):
    """Somebody else's may lead to a file of this user."""
    as_rank(0)
    found_by_one(lambda: 5, tmp_path)
    (place,) = tmp_path.iterdir()
    place.rename(tmp_path / "elsewhere").chmod(0o600)
    place.symlink_to("elsewhere")
    as_rank(1)
    with pytest.raises(UserError, match=place.name):
        found_by_one(never, tmp_path)


def test_what_cannot_be_written_each_finds(as_rank, tmp_path):
    for rank in (0, 1):
        as_rank(rank)
        assert found_by_one(lambda: raises, tmp_path) is raises


@pytest.mark.parametrize("alone", [{}, {"LOCAL_RANK": "1"}], ids=["one-process", "of-an-unknown-launcher"])
def test_a_process_of_no_known_job_looks_itself(alone, tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", index.HANDED_OVER):
        monkeypatch.delenv(name, raising=False)
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    assert found_by_one(lambda: 3, tmp_path) == 3 and not list(tmp_path.iterdir())


def test_a_set_that_is_handed_over(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    in_splits(tmp_path / "set")
    source = FolderSource(tmp_path / "set")
    known = source, Fingerprint.of(source)
    monkeypatch.setenv(index.HANDED_OVER, "")  # so that it is taken away after the test
    hand_over(known, tmp_path / "runs")
    monkeypatch.setenv("LOCAL_RANK", "1")
    images, fingerprint = found_by_one(never, tmp_path)
    assert fingerprint == known[1] and images.notes == source.notes
    for split in ("train", "val"):
        assert list(images.split(split).items) == list(source.split(split).items)
        assert np.array_equal(images.split(split)[0][0], source.split(split)[0][0])
    (written,) = (tmp_path / "runs").iterdir()
    index._remove(written, -1)  # by another process
    assert written.exists()
    index._remove(written, os.getpid())
    assert not written.exists()
