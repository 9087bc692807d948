"""The entry point: which commands there are, and the one way in which all of them fail."""

import contextlib
import importlib.util
import io
import subprocess
import sys
from unittest.mock import Mock

import pytest

from longvision.errors import LostPeerError, UserError
from longvision_cli import main as entry


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["recipes"], ["recipes", "--help"], ["trian"]])
def test_what_needs_no_library_imports_none(fresh, words):
    code, loaded, _ = fresh(words)
    assert code == (2 if words == ["trian"] else 0)
    assert not loaded & {"torch", "timm", "lightning", "numpy", "yaml", "jsonargparse"}


def test_the_package_run_as_a_module_is_as_quick():
    words = [sys.executable, "-X", "importtime", "-m", "longvision", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"longvision {_version()}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "longvision_cli.main" in imported
    assert not imported & {"torch", "timm", "numpy", "longvision.models"}


@pytest.mark.parametrize(
    "command, started, parents, says",
    [
        ("train", "RANK=0 WORLD_SIZE=2", [1, 2], True),
        ("train", "RANK=1 LOCAL_RANK=0 WORLD_SIZE=2", [1, 2], False),
        ("train", "LOCAL_RANK=1 WORLD_SIZE=2", [1, 1, 2], False),
        ("train", "SLURM_PROCID=3 SLURM_NTASKS=4", [1] * 99, True),  # the first met nothing
        ("train", "SLURM_PROCID=3 SLURM_NTASKS=4", [1, KeyboardInterrupt], True),
        ("train", "RANK=1 WORLD_SIZE=1", [1, 2], True),
        ("predict", "SLURM_PROCID=3 SLURM_NTASKS=4", [1, 2], True),  # srun starts many that know nothing of each other
        ("train", "", [1, 2], True),
    ],
)
def test_of_several_processes_the_first_tells_a_mistake(longvision, monkeypatch, command, started, parents, says):
    """The end of what started them is the first one's."""
    for name in (*entry.RANK, *entry.WORLD):
        monkeypatch.delenv(name, raising=False)
    for name, number in (each.split("=") for each in started.split()):
        monkeypatch.setenv(name, number)
    monkeypatch.setattr(entry.os, "getppid", Mock(side_effect=parents))
    monkeypatch.setattr(entry, "PATIENCE", 0.2)
    monkeypatch.setattr(entry, "_require_extra", Mock(side_effect=UserError("a mistake")))
    answer = longvision(command)
    assert answer.code == 2 and ("a mistake" in answer.err) is says


def test_a_lost_process_is_told_by_each_that_is_left(longvision, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(entry, "_split", Mock(side_effect=LostPeerError("process 1 of 2")))
    monkeypatch.setattr(entry.time, "sleep", Mock(side_effect=AssertionError))
    assert "process 1 of 2" in longvision("train").err


def test_help_names_every_command(longvision):
    answer = longvision("--help")
    assert answer.code == 0
    for name, command in entry.COMMANDS.items():
        assert f"  {name} " in answer.out
        assert command.help in answer.out
    assert longvision().out == answer.out


@pytest.mark.parametrize("name", entry.COMMANDS)
def test_every_command_has_help(longvision, name):
    answer = longvision(name, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"usage: longvision {name}")
    assert "Traceback" not in answer.err


def test_help_of_train_shows_what_can_be_set(longvision):
    out = longvision("train", "--help").out
    for option in ("--model.lr", "--data.size", "--trainer.max_epochs", "--resume", "--seed"):
        assert option in out
    assert "--data.path" not in out  # the digits have none
    assert "--data.path" in longvision("train", "-c", "folder", "--help").out


@pytest.mark.parametrize(
    "given, expected",
    [("trian", "train"), ("predct", "predict"), ("zzz", "train, validate, predict")],
)
def test_an_unknown_command_gets_the_nearest(longvision, given, expected):
    answer = longvision(given)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("longvision: error: ") and repr(given) in answer.err and expected in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(longvision, option):
    """Of a checkout that is not installed too."""
    answer = longvision(option)
    assert (answer.code, answer.out) == (0, f"longvision {_version()}\n")


def _version():
    from longvision.version import __version__

    return __version__


def test_debug_shows_the_traceback(longvision):
    without, with_debug = longvision("recipes", "nosuch"), longvision("recipes", "nosuch", "--debug")
    assert without.code == with_debug.code == 2
    assert "Traceback" not in without.err
    assert "Traceback" in with_debug.err
    assert with_debug.err.endswith(without.err)
    assert longvision("--debug", "recipes", "nosuch").err.startswith("Traceback")


@pytest.mark.parametrize("name", ["train", "validate", "check-data", "explain"])
def test_a_missing_extra_is_named(longvision, monkeypatch, name):
    found = importlib.util.find_spec
    missing = entry.COMMANDS[name].probe
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *rest: None if module == missing else found(module))
    answer = longvision(name, "--help")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err == (
        f"longvision {name}: error: it needs the extra 'train', which is not installed: "
        "in a clone of the repository, pip install '.[train]'\n"
    )


@pytest.mark.parametrize("name", ["models", "recipes", "convert", "predict"])
def test_the_core_alone_lists_and_converts(longvision, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert longvision(name, "--help").code == 0


def test_a_bug_is_not_hidden(longvision, monkeypatch):
    def broken(name):
        raise AssertionError("a bug")

    monkeypatch.setattr("longvision_cli.recipes.find_recipe", broken)
    with pytest.raises(AssertionError, match="a bug"):
        longvision("recipes", "digits")


@pytest.mark.parametrize("kind", [ValueError, OSError, FileNotFoundError, RuntimeError])
def test_what_a_library_raises_keeps_its_traceback(longvision, monkeypatch, kind):
    def broken(name):
        raise kind("of a library")

    monkeypatch.setattr("longvision_cli.recipes.find_recipe", broken)
    with pytest.raises(kind, match="of a library"):
        longvision("recipes", "digits")


def test_an_interruption_says_which_command(longvision, monkeypatch):
    def stopped(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("longvision_cli.recipes.find_recipe", stopped)
    answer = longvision("recipes", "digits")
    assert (answer.code, answer.err) == (130, "\nlongvision recipes: interrupted\n")


def test_an_error_from_a_loader_s_process_is_its_last_line(longvision, monkeypatch):
    def failed(name):
        raise UserError("Caught UserError in worker 0.\nOriginal Traceback (most recent call last):\n  x\nUserError: 3")

    monkeypatch.setattr("longvision_cli.recipes.find_recipe", failed)
    assert longvision("recipes", "digits").err == "longvision recipes: error: 3\n"


def test_the_reader_of_a_pipe_may_leave(longvision):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with contextlib.redirect_stdout(Gone()), contextlib.redirect_stderr(io.StringIO()):
        assert entry.main(["recipes", "digits"]) == 0
