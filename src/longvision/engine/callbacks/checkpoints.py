"""The best epoch and the last state, in a run's folder that may be moved between two sessions of the run."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from longvision.errors import DivergedError


class RunCheckpoint(ModelCheckpoint):
    """Its files are in the folder where the run is now, not where it was when they were written."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(str(self.dirpath))
        paths = {
            key: str(here / Path(value).name) for key, value in state_dict.items() if key.endswith("path") and value
        }
        best = {str(here / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(RunCheckpoint):
    """Saves the state at an interruption or an error too; a model that diverged does not replace the last good one."""

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if not isinstance(exception, DivergedError):
            super().on_exception(trainer, pl_module, exception)
