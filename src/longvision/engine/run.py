"""A run's folder: what is in it, under which names. Nothing that exists is ever written over."""

import datetime
import shutil
import zipfile
from pathlib import Path

from longvision.data.fingerprint import Fingerprint
from longvision.errors import UserError
from longvision.files import check_run


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
        self.last = self.checkpoints / "last.ckpt"
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

    def resume_from(self) -> Path:
        """The checkpoint to go on from. Raises UserError for a run that is finished or never began, and for a damaged
        one."""
        if self.weights.exists():
            raise UserError(
                f"{self.path} is finished: to go on from its weights, start a new run with "
                f"-c {self.configs()[-1]} --model.pretrained {self.weights}"
            )
        if not self.last.exists():
            raise UserError(f"{self.path} has no checkpoint yet: start again with -c {self.configs()[-1]}")
        if not _is_whole(self.last):
            best = self.best.exists() and _is_whole(self.best)
            remedy = f"the best epoch's is whole: to go on from it, copy {self.best} there" if best else (
                f"there is no other one: start again with -c {self.configs()[-1]}"
            )  # fmt: skip
            raise UserError(f"{self.last} is cut short or damaged; {remedy}")
        return self.last


def _is_whole(checkpoint: Path) -> bool:
    """Of a file that torch saved, a zip; what several devices wrote to a folder is not looked at."""
    if checkpoint.is_dir():
        return True
    try:
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False
