"""Two processes of one `longvision train`, however they were started: one of them lists the data."""

import subprocess
import sys

import pytest

pytest.importorskip("lightning")
from support.class_folders import in_splits
from support.launched import torchrun

PROGRAM = """
import os, sys
from pathlib import Path
import torch
from longvision.data.sources.folder import FolderSource

list_files = FolderSource.__init__

def listed(self, *arguments):
    with open("listed.txt", "a") as file:
        file.write(os.environ.get("LOCAL_RANK", "alone") + "\\n")
    list_files(self, *arguments)

FolderSource.__init__ = listed
torch.set_num_threads(1)
if __name__ == "__main__":
    from longvision_cli.main import main
    sys.exit(main(sys.argv[1:]))
"""
OPTIONS = """-c folder --data.path set --data.size 32 --data.workers 0 --data.batch_size 2
--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"""


VIM = "--model.name vim_nano_patch4_32 --model.args.depth 1"
ONE_VALUE = "--model.name resnet18 --data.batch_size 1"  # which a batch norm refuses


def train(folder, launcher, *words):
    (folder / "program.py").write_text(PROGRAM)
    start = torchrun() if launcher == "torchrun" else []
    command = [sys.executable, *start, "program.py", "train", *OPTIONS.split(), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--data.path nowhere", ONE_VALUE], ids=["before", "after"])
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_a_mistake_is_told_once(launcher, words, tmp_path):
    """Before and after there is a second process, also where Lightning starts it."""
    in_splits(tmp_path / "set")
    done = train(tmp_path, launcher, *words.split())
    assert done.returncode != 0 and done.stderr.count("longvision train: error: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_one_process_lists_the_data(launcher, tmp_path):
    in_splits(tmp_path / "set")
    done = train(tmp_path, launcher, *VIM.split())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "listed.txt").read_text().split() == ["0" if launcher == "torchrun" else "alone"]
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "model.safetensors").exists()
