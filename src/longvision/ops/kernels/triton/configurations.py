"""How kernels are launched: tiles, warps, when to split a sequence. Data, chosen by shape.

Rows come from configurations.json beside this file, which suits every GPU, and from the file that `longvision autotune`
writes for the one it measured. Of those with the nearest number of states, one of this device is taken, the
one measured nearest to the shape. What that leaves out is of the next nearest that has it.
"""

import functools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.compiler import CompilerError, cache_folder

VARIABLE = "LONGVISION_LAUNCH"  # another file of measured rows
SHIPPED = Path(__file__).with_name("configurations.json")
SHAPE = ("states", "width", "tokens", "batch")  # the first weighs most: it decides what fits into registers

KERNELS = {  # and what of a configuration they read
    "scan_ends": ("channels", "warps"),
    "scan_forward": ("channels", "warps", "programs"),
    "scan_backward": ("channels", "warps", "programs", "piece"),
}


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
    return _nearest(kernel, device, (states, width, tokens, batch), os.environ.get(VARIABLE))


@contextmanager
def forced(kernel: str, chosen: Configuration) -> Iterator[None]:
    """Inside, the kernel is launched so, whatever the shape: to measure it."""
    _forced[kernel] = chosen
    try:
        yield
    finally:
        del _forced[kernel]


def measured_file() -> Path:
    """Where `longvision autotune` writes, and what is read if it exists.

    Raises:
        ValueError: there is no folder for it.
    """
    return _file_named(os.environ.get(VARIABLE))


def _file_named(name: str | None) -> Path:
    try:
        return Path(name or cache_folder() / "launch.json")
    except CompilerError as error:
        raise ValueError(f"there is no home folder for launch configurations: set {VARIABLE} to a file") from error


@functools.lru_cache(maxsize=4096)
def _nearest(kernel: str, device: str, shape: tuple[int, ...], file: str | None) -> Configuration:
    rows = [row for row in _rows(file) if row["kernel"] == kernel and row["device"] in ("any", device)]
    settings: dict[str, int] = {}
    for row in reversed(sorted(rows, key=lambda row: _distance(row, shape))):  # the nearest last: it overrides
        settings |= {name: row[name] for name in Configuration._fields if name in row}
    return Configuration(**settings)


def _distance(row: dict, shape: tuple[int, ...]) -> tuple[float, bool, float]:
    """Of states, which decide what fits into registers; of the device; of the rest. In factors of two; a row that says
    nothing of a shape is the farthest."""

    def factor(name: str, size: int) -> float:
        return abs(math.log2(row.get(name, math.inf)) - math.log2(max(1, size)))

    of_states, *others = map(factor, SHAPE, shape)
    return of_states, row["device"] == "any", sum(others)


@functools.lru_cache(maxsize=8)
def _rows(file: str | None) -> list[dict]:
    """Those measured, of that file or the usual one, and those shipped."""
    try:
        path = _file_named(file)
    except ValueError:  # a user without a home, in a container: nothing was measured
        return read_rows(SHIPPED)
    return [*read_rows(path), *read_rows(SHIPPED)]


def read_rows(path: Path) -> list[dict]:
    """Of a file of configurations; none if there is no such file.

    Raises:
        ValueError: it is not one.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is not a file: {VARIABLE} or --out names the one of launch configurations")
    try:
        wrong = _wrong(rows := json.loads(path.read_text()))
    except (ValueError, RecursionError):
        wrong = "it is not JSON"
    if wrong:
        raise ValueError(
            f"{path} holds no launch configurations ({wrong}): delete it and run `longvision autotune` again"
        )
    return rows


def _wrong(rows: Any) -> str:
    """What is wrong with the content of a file of configurations; nothing if all is right."""
    if not isinstance(rows, list):
        return "expected a list of rows"
    found = ((number, _wrong_in(row)) for number, row in enumerate(rows, 1))
    return next((f"row {number}{wrong}" for number, wrong in found if wrong), "")


def _wrong_in(row: Any) -> str:
    if not isinstance(row, dict):
        return " has no names and values"
    for name in ("kernel", "device", "channels"):
        if name not in row:
            return f" has no {name}"
    if row["kernel"] not in tuple(KERNELS):
        *most, last = KERNELS
        return f": kernel is {json.dumps(row['kernel'])}, expected {', '.join(most)} or {last}"
    if not isinstance(row["device"], str):
        return f": device is {json.dumps(row['device'])}, expected the name of a GPU, or any"
    for name in (*Configuration._fields, *SHAPE):
        if name in row and (type(row[name]) is not int or row[name] < 1):  # True is an int, too
            return f": {name} is {json.dumps(row[name])}, expected a whole number of at least 1"
    # What the kernels are written for: lanes that exchange nothing are those of one warp.
    if row.get("warps", 1) != 1 or row["channels"] not in (32, 64, 128) or row.get("piece", 4) not in (1, 2, 4, 8):
        return ": expected 1 warp, 32, 64 or 128 channels, pieces of 1, 2, 4 or 8"
    return ""


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    """Adds measured rows to the file, in place of those of the same kernel, device and shape."""

    def key(row: dict) -> tuple:
        return row["kernel"], row["device"], *(row.get(name) for name in SHAPE)

    kept = {key(row): row for row in [*read_rows(path), *rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    half = _half(path)
    try:
        half.write_text("[\n" + ",\n".join("  " + json.dumps(row) for row in kept.values()) + "\n]\n")
        half.replace(path)  # in one step: a process that reads it meanwhile sees the old file or the new one
    finally:
        half.unlink(missing_ok=True)
    _rows.cache_clear()
    _nearest.cache_clear()


def check_writable(path: Path) -> None:
    """Raises ValueError where `write_rows` could not write, or would add to something else."""
    read_rows(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _half(path).touch()
        _half(path).unlink()
    except OSError as error:
        file = next((place for place in path.parents if place.exists() and not place.is_dir()), None)
        reason = error.strerror if file is None else f"{file} is not a folder"
        raise ValueError(f"{path} cannot be written ({reason}): name another file with --out") from error


def _half(path: Path) -> Path:
    """What becomes the file once it is whole."""
    return path.with_name(f"{path.name}.{os.getpid()}")
