"""Checkpoints as a run writes them, and what can happen to a file."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from longvision.engine.checkpoint_file import seal_folder
from longvision.engine.checkpoint_io import RunCheckpointIO

CONTENT = {"state_dict": {"weight": torch.arange(300.0)}, "epoch": 3, "name": "x"}


def save(path: Path) -> Path:
    RunCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def save_shards(folder: Path) -> Path:
    """As torch writes them, though by one process."""
    from torch.distributed.checkpoint import save

    with warnings.catch_warnings(action="ignore"):  # torch has words for a process that is alone
        save({"model": CONTENT["state_dict"]}, checkpoint_id=folder, no_dist=True)
    seal_folder(folder)
    return folder


def flipped(place: int) -> Callable[[Path], object]:
    """One bit, `place` bytes from the beginning or, if it is negative, the end."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 4
        path.write_bytes(content)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-400]),
    "empty": lambda path: path.write_bytes(b""),
    "a-bit-of-a-tensor": flipped(1000),
    "a-bit-of-the-index": flipped(-400),
    "a-bit-of-the-checksum": flipped(-1),
}
