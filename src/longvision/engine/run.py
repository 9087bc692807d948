"""A run's folder: what is in it, under which names. Nothing that exists is ever written over."""

import datetime
import os
import shutil
from pathlib import Path

RUN_VARIABLE = "LONGVISION_RUN"


def leads_run() -> bool:
    """Whether this process is the first of a run on several devices, which writes and prints for all."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


class Run:
    """The folder of one training run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.csv"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.weights = path / "model.safetensors"
        self.card = path / "README.md"

    @classmethod
    def create(cls, root: str | Path, name: str) -> "Run":
        """A new folder in `root`, named by the time; a second one of the same second gets a number.

        A process that Lightning starts for another device runs the whole command again, and joins its leader's run.
        """
        if not leads_run() and (joined := os.environ.get(RUN_VARIABLE)):
            return cls(Path(joined))
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        base = Path(root) / f"{name}-{stamp}"
        if Path(root).exists() and not Path(root).is_dir():
            raise ValueError(f"--runs {root} is a file: give a folder, in which the run gets one of its own")
        number, path = 1, base
        while True:
            try:
                path.mkdir(parents=True)
                os.environ[RUN_VARIABLE] = str(path)
                return cls(path)
            except FileExistsError:
                if not path.is_dir():
                    raise
                number += 1
                path = base.with_name(f"{base.name}-{number}")

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing one. Raises FileNotFoundError or ValueError for what is none."""
        run = cls(Path(path))
        if not run.path.exists():
            raise FileNotFoundError(
                f"run folder {path} does not exist: `longvision train` makes one and prints its name"
            )
        if not run.configs():
            raise ValueError(
                f"{path} is not a run folder, it has no config.yaml: give one that `longvision train` printed"
            )
        return run

    def discard_if_unused(self) -> bool:
        """Take a new run's folder away again, when it failed before there was anything to keep; -> whether it was."""
        if self.metrics.exists() or self.checkpoints.exists():
            return False
        shutil.rmtree(self.path)
        return True

    def configs(self) -> list[Path]:
        """The resolved configuration, and one for each time that the run went on with another."""
        first = self.path / "config.yaml"
        later = sorted(self.path.glob("config-resumed-*.yaml"), key=lambda path: int(path.stem.split("-")[-1]))
        return [first, *later] if first.is_file() else []

    def new_config(self) -> Path:
        """Where the next one goes."""
        number = len(self.configs())
        return self.path / (f"config-resumed-{number}.yaml" if number else "config.yaml")

    def trained_weights(self) -> Path:
        """model.safetensors. Raises ValueError for a run that is not finished."""
        if not self.weights.is_file():
            raise ValueError(
                f"{self.path} has no model.safetensors, its training is not finished: "
                f"go on with longvision train --resume {self.path}"
            )
        return self.weights

    def resume_from(self) -> Path:
        """The checkpoint to go on from. Raises ValueError for a run that is finished or never began."""
        if self.weights.exists():
            raise ValueError(
                f"{self.path} is finished: to go on from its weights, start a new run with "
                f"-c {self.configs()[-1]} --model.pretrained {self.weights}"
            )
        if not self.last.is_file():
            raise ValueError(f"{self.path} has no checkpoint yet: start again with -c {self.configs()[-1]}")
        return self.last
