"""A run's folder: what is in it, under which names. Nothing that exists is ever written over."""

import datetime
import shutil
from pathlib import Path

from longvision.data.fingerprint import Fingerprint
from longvision.engine.checkpoint_file import is_whole
from longvision.errors import UserError
from longvision.files import check_run

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


def check_root(root: str | Path) -> None:
    """Raises UserError where runs cannot have their folders, because it is a file or below one."""
    for place in (Path(root), *Path(root).parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"--runs {root}: {place} is a file: give a folder, in which the run gets one of its own")


class Run:
    """The folder of one training run.

    On several devices the first process makes it, and `trainer.train` tells the others once they can speak.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.csv"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"  # a folder where a model is sharded over devices
        self.last = self.checkpoints / LAST
        self.previous = self.checkpoints / PREVIOUS  # the last one's forerunner
        self.weights = path / "model.safetensors"
        self.card = path / "README.md"

    @classmethod
    def create(cls, root: str | Path, name: str) -> "Run":
        """A new folder in `root`, named by the time; a second one of the same second gets a number."""
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        base = Path(root) / f"{name}-{stamp}"
        check_root(root)
        number, path = 1, base
        while True:
            try:
                path.mkdir(parents=True)
                return cls(path)
            except FileExistsError:
                if not path.is_dir():
                    raise
                number += 1
                path = base.with_name(f"{base.name}-{number}")

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing one. Raises UserError for what is none."""
        check_run(Path(path))
        return cls(Path(path))

    @classmethod
    def of_weights(cls, weights: str | Path) -> "Run | None":
        """The one in whose folder a file lies."""
        run = cls(Path(weights).resolve().parent)
        return run if run.configs() and (run.data_files() or run.metrics.exists()) else None

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

    def data_files(self) -> list[Path]:
        """What the run knows of its data, and one for each time that it went on with changed data."""
        first = self.path / "data.json"
        later = sorted(self.path.glob("data-resumed-*.json"), key=lambda path: int(path.stem.split("-")[-1]))
        return [first, *later] if first.is_file() else later

    def new_data_file(self) -> Path:
        """Where the next one goes."""
        number = len(self.data_files())
        return self.path / (f"data-resumed-{number}.json" if number else "data.json")

    def fingerprint(self) -> Fingerprint | None:
        """Its data as it was trained on last; None for a run of earlier versions."""
        files = self.data_files()
        return Fingerprint.read(files[-1]) if files else None

    def fingerprints(self) -> list[Fingerprint]:
        """Its data each time that it was trained on other data, the last one last."""
        return [Fingerprint.read(file) for file in self.data_files()]

    def resume_from(self) -> tuple[Path, list[str]]:
        """The newest checkpoint that is whole, and what is to be told of others. Raises UserError for a run that is
        finished or never began, and where every checkpoint is damaged."""
        if self.weights.exists():
            raise UserError(
                f"{self.path} is finished: to go on from its weights, start a new run with "
                f"-c {self.configs()[-1]} --model.pretrained {self.weights}"
            )
        damaged: list[str] = []
        for checkpoint in (self.last, self.previous, self.best):
            if is_whole(checkpoint):
                words = f"{' and '.join(damaged)} cut short or damaged: goes on from {checkpoint}, which is older"
                return checkpoint, [words] if damaged else []
            if checkpoint.exists():
                damaged.append(str(checkpoint))
        again = f"start again with -c {self.configs()[-1]}"
        if damaged:
            raise UserError(f"{', '.join(damaged)}: cut short or damaged, and there is no other checkpoint: {again}")
        raise UserError(f"{self.path} has no checkpoint yet: {again}")
