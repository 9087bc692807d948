"""What a run that goes on with changed data notes of it."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from longvision.data.fingerprint import Fingerprint


class DataFile(Callback):
    """Written before the first checkpoint whose weights have seen the data: an attempt that fails before leaves the run
    with the data that it knew."""

    def __init__(self, path: Path, fingerprint: Fingerprint) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.step = 0  # of the optimizer, when the run went on

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.global_step > self.step and not self.path.exists():
            self.fingerprint.write(self.path)
