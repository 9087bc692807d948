"""Where rows come from."""

import subprocess

import pytest
import torch

from longvision.benchmark.provenance import choose_device, commit, device_name, provenance
from longvision.errors import UserError


def test_where_rows_come_from():
    assert set(provenance()) == {"longvision", "torch", "timm", "python", "commit", "date"}
    name, instructions = device_name("cpu").rsplit(" (", 1)
    assert name and instructions == f"{torch.backends.cpu.get_cpu_capability()})"


def test_the_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device("") == choose_device("cpu") == "cpu"
    with pytest.raises(UserError, match="cuda"):
        choose_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_device("") == choose_device("cuda") == "cuda"


def test_the_commit_of_a_checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) == ""  # no checkout
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "zero")
    assert commit(package) == ""  # a checkout of something else: the package is not tracked in it
    git("add", ".")
    git("commit", "-m", "one")
    name = git("rev-parse", "--short", "HEAD")
    assert commit(package) == name
    (package / "new.py").write_text("")
    assert commit(package) == f"{name}+dirty"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == ""
