"""What a run that goes on with other data or options notes of them."""

from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class OnceTrained(Callback):
    """Calls `write`, in the first process, before the first checkpoint whose weights have been trained since the run
    went on: an attempt that fails before leaves the run as it was."""

    def __init__(self, write: Callable[[], None]) -> None:
        self.write: Callable[[], None] | None = write
        self.step = 0  # of the optimizer, when the run went on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero and self.write and trainer.global_step > self.step:
            self.write()
            self.write = None
