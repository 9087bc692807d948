"""Images that cannot be read, counted over all devices."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class UnreadableImages(Callback):
    """At the end of each epoch every device knows of those that the others met: the share that a set may have of them
    is the set's, however many devices read it."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _count(trainer, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _count(trainer, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _count(trainer, "test")


def _count(trainer: Any, split: str) -> None:
    count = getattr(trainer.datamodule, "count_unreadable_together", None)  # data of one's own may not have it
    if count is not None:
        count(split)
