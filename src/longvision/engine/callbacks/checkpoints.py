"""The best epoch and the last state, in a run's folder that may be moved between two sessions of the run."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from longvision.engine.callbacks.stop import Agreed, AtOnce
from longvision.errors import DivergedError, UnsavedError


class RunCheckpoint(ModelCheckpoint):
    """Its files are in the folder where the run is now, not where it was when they were written. An epoch whose metric
    is no number is never the best."""

    def check_monitor_top_k(self, trainer: Any, current: Tensor | None = None) -> bool:
        return current is not None and not current.isnan() and super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(str(self.dirpath))
        paths = {
            key: str(here / Path(value).name) for key, value in state_dict.items() if key.endswith("path") and value
        }
        best = {str(here / Path(path).name): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(RunCheckpoint):
    """Saves the state after each epoch and each validation within one, after every `every` steps if that is not 0, and
    at an interruption or an error; a model that diverged does not replace the last good one, nor does half a step."""

    def __init__(self, every: int = 0, **options: Any) -> None:
        self.every = every
        super().__init__(filename="last", save_on_exception=True, save_on_train_epoch_end=True, **options)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self._save_within_an_epoch(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._save_within_an_epoch(trainer)

    def _save_within_an_epoch(self, trainer: Any) -> None:
        if not trainer.is_last_batch and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Several processes save together: of an error of its own one alone knows, and would wait for the others.
        together = trainer.world_size == 1 or isinstance(exception, Agreed)
        if together and not isinstance(exception, DivergedError | UnsavedError | AtOnce):
            super().on_exception(trainer, pl_module, exception)
