"""A training by the command and the row that it leaves: what the tables of accuracies share."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows
from longvision.files import read_metadata


@dataclass(frozen=True)
class Training:
    """One run of `longvision train`.

    Args:
        model: what its row calls the model.
        args: the model's name in timm, as `name`, and its arguments.
        recipe: of the command.
        options: of the command, beside the model's.
        seed: of the run.
        columns: of its row, in front of the others.
    """

    model: str
    args: dict[str, Any]
    recipe: str
    options: dict[str, Any]
    seed: int
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What a row is known by."""
        return (*map(str, self.columns.values()), self.model, str(self.seed))

    def run(self, runs: str) -> Path:
        """Train -> the run's folder, in `runs`."""
        arguments = {f"model.args.{key}": value for key, value in self.args.items() if key != "name"}
        options = {"model.name": self.args["name"], **arguments, **self.options}
        words = ["-c", self.recipe, "--seed", str(self.seed), "--runs", runs]
        words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        return Path(command("train", *words).splitlines()[-1])

    def row(self, runs: str) -> dict[str, Any]:
        """Train, into a folder in `runs` -> its row, of test images; where there are none, of those that validate."""
        began = time.monotonic()
        folder = self.run(runs)
        seconds = time.monotonic() - began
        metrics = read_metadata(folder / "model.safetensors")["metrics"]
        split = "test" if "test/accuracy" in metrics else "val"
        return {
            **self.columns,
            "model": self.model,
            "args": json.dumps(self.args),
            "seed": self.seed,
            "accuracy": round(metrics[f"{split}/accuracy"], 4),
            "loss": round(metrics[f"{split}/loss"], 4),
            "seconds": round(seconds, 1),
            **origin(),
        }


def command(*words: str) -> str:
    """What `longvision` prints. Raises CalledProcessError where it fails."""
    done = subprocess.run([sys.executable, "-m", "longvision", *words], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def origin() -> dict[str, str]:
    """The columns that close a row: on what, and by which code."""
    return {"device": f"{torch.get_num_threads()} threads, {device_name('cpu')}", **provenance()}


def run_all(table: Path, trainings: Iterable[Training], runs: str) -> None:
    """Those whose row is not in the table yet; each is written when it ends."""
    for training in trainings:
        rows = read_rows(table)
        there = {(*(row[name] for name in training.columns), row["model"], row["seed"]) for row in rows}
        if training.key not in there:
            write_rows(table, [*rows, training.row(runs)])
