"""Ctrl-C and a scheduler's signals end a training where its state can be saved, in all its processes."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last is SLURM's word before the end (--signal=USR1@120)


class AtOnce(KeyboardInterrupt):
    """The second Ctrl-C within a step: the state is not whole."""


class Agreed(KeyboardInterrupt):
    """Every process of the run is at this place."""


class Stop(Callback):
    """Ends the training at a signal, where its state is whole: after a step, a batch of validation, or a validation; a
    second Ctrl-C does not wait. Of several processes any may get one: all end in the same place, and not between the
    batches of a validation.

    Comes last: the other callbacks have done what is theirs of the step.
    """

    def __init__(self) -> None:
        self.asked = self.alone = False
        self.before: dict[int, Any] = {}  # handlers

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.alone = trainer.world_size == 1
        if threading.current_thread() is not threading.main_thread():  # signals reach no other one
            return
        names = SIGNALS if "SLURM_JOB_ID" in os.environ else SIGNALS[:2]
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):  # Windows has fewer
            if number != signal.SIGINT or signal.getsignal(number) is signal.default_int_handler:
                self.before[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Agreeing waits for the device.
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch:
            self._end_together(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.alone:
            self._end_together(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._end_together(trainer)

    def _end_together(self, trainer: Trainer) -> None:
        if self.asked if self.alone else trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            raise Agreed

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()
        self._end_together(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        """As it was; while Lightning ends after an interruption, Ctrl-C is ignored, and stays so."""
        for number, handler in self.before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise AtOnce
        self.asked = True  # and nothing is raised: weights may be half exchanged, a checkpoint half written
