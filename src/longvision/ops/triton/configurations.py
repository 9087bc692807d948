"""How kernels are launched: tiles, warps, when to split a sequence. Data, chosen by shape.

Rows come from configurations.json beside this file, which suits every GPU, and from the file that `longvision autotune`
writes for the one it measured. Of those with the nearest number of states, one of this device is taken, the
one measured nearest to the shape.
"""

import functools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.native.compiler import cache_folder

VARIABLE = "LONGVISION_LAUNCH"  # another file of measured rows
SHIPPED = Path(__file__).with_name("configurations.json")
SHAPE = ("states", "width", "tokens", "batch")  # the first weighs most: it decides what fits into registers


class Configuration(NamedTuple):
    """`channels` of a program, `warps` of 32 lanes; a sequence is split until there are `programs`; the backward pass
    holds `piece` tokens of a state in registers."""

    channels: int
    warps: int = 1
    programs: int = 1
    piece: int = 4


_forced: dict[str, Configuration] = {}


def configuration(kernel: str, x_BME: Tensor, states: int) -> Configuration:
    """For x of that shape and device."""
    if kernel in _forced:
        return _forced[kernel]
    batch, tokens, width = x_BME.shape
    device = torch.cuda.get_device_name(x_BME.device) if x_BME.device.type == "cuda" else "any"
    return _nearest(kernel, device, (states, width, tokens, batch), str(measured_file()))


@contextmanager
def forced(kernel: str, chosen: Configuration) -> Iterator[None]:
    """Inside, the kernel is launched so, whatever the shape: to measure it."""
    _forced[kernel] = chosen
    try:
        yield
    finally:
        del _forced[kernel]


def measured_file() -> Path:
    """Where `longvision autotune` writes, and what is read if it exists."""
    return Path(os.environ.get(VARIABLE) or cache_folder() / "launch.json")


@functools.lru_cache(maxsize=4096)
def _nearest(kernel: str, device: str, shape: tuple[int, ...], measured: str) -> Configuration:
    rows = [row for row in _rows(measured) if row["kernel"] == kernel and row["device"] in ("any", device)]
    best = min(rows, key=lambda row: _distance(row, shape))
    return Configuration(**{name: best[name] for name in Configuration._fields if name in best})


def _distance(row: dict, shape: tuple[int, ...]) -> tuple[float, bool, float]:
    """Of states, which decide what fits into registers; of the device; of the rest. In factors of two; a row that says
    nothing of a shape is the farthest."""
    of_states, *others = (abs(math.log2(row.get(name, math.inf) / max(1, size))) for name, size in zip(SHAPE, shape))
    return of_states, row["device"] == "any", sum(others)


@functools.lru_cache(maxsize=8)
def _rows(measured: str) -> list[dict]:
    return [*read_rows(Path(measured)), *read_rows(SHIPPED)]


def read_rows(path: Path) -> list[dict]:
    """Of a file of configurations; none if there is no such file.

    Raises:
        ValueError: it is not one.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text())
        for row in rows:
            _check(Configuration(**{name: int(row[name]) for name in Configuration._fields if name in row}))
            row["kernel"], row["device"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no launch configurations ({error}): run `longvision autotune` again") from error
    return rows


def _check(row: Configuration) -> None:
    """Raises ValueError for what the kernels are not written for: lanes that exchange nothing are those of one warp."""
    if row.warps != 1 or row.channels not in (32, 64, 128) or row.piece not in (1, 2, 4, 8):
        raise ValueError(f"{row}: expected 1 warp, 32, 64 or 128 channels, pieces of 1, 2, 4 or 8")


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Adds measured rows to the file, in place of those of the same kernel, device and shape."""

    def key(row: dict) -> tuple:
        return row["kernel"], row["device"], *(row.get(name) for name in SHAPE)

    kept = {key(row): row for row in [*read_rows(path), *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}")
    half.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in kept.values()) + "\n]\n")
    half.replace(path)  # in one step: a process that reads it meanwhile sees the old file or the new one
    _rows.cache_clear()
    _nearest.cache_clear()
