"""A run's folder: what is in it, under which names. Nothing that exists is ever written over."""

import datetime
import shlex
import shutil
from functools import cached_property
from pathlib import Path

from longvision.data.fingerprint import Fingerprint
from longvision.engine.checkpoint_file import is_whole, put_back
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
        self.unreported = path / ".unreported"  # there while the report is being made
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

    def is_finished(self) -> bool:
        """Whether a training came to its end, and its report too."""
        return self.weights.exists() and not self.unreported.exists()

    def finished(self) -> UserError:
        """What to do with such a one."""
        return UserError(
            f"{self.path} is finished: go on with more --trainer.max_epochs, max_steps or max_time (which counts from "
            f"its beginning), or start a new run from its weights with -c {shlex.quote(str(self.configs()[-1]))} "
            f"--model.pretrained {self.weights}"
        )

    @cached_property
    def has_best(self) -> bool:
        """Whether there is a best epoch that is whole; asked once, when it has been trained."""
        return is_whole(self.best)

    def resume_from(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, None where there is none yet, and what is to be told of others. Raises
        UserError where every checkpoint is damaged or gone."""
        damaged: list[str] = []
        for checkpoint in (self.last, self.best):
            put_back(checkpoint)
        for checkpoint in (self.last, self.previous, self.best):
            if is_whole(checkpoint):
                words = f"{' and '.join(damaged)}: goes on from {checkpoint}, which is older"
                return checkpoint, [words] if damaged else []
            if checkpoint.exists():
                damaged.append(f"{checkpoint} is cut short or damaged")
        if self._has_trained():
            damaged = damaged or [f"{self.checkpoints} is empty"]
        if damaged:
            again = f"start again with -c {shlex.quote(str(self.configs()[-1]))}"
            raise UserError(f"{' and '.join(damaged)}, and there is no other checkpoint: {again}")
        return None, [f"{self.path} was stopped before its first checkpoint: begins again"]

    def _has_trained(self) -> bool:
        """More than an epoch; after the first, a process may end between its row and its checkpoint."""
        rows = self.metrics.read_text(encoding="utf-8").count("\n") - 1 if self.metrics.exists() else 0
        return self.weights.exists() or rows > 1
