"""Where in its data a run is, in its checkpoints: a run that goes on repeats and omits no image.

A checkpoint holds what the optimizer has made of an epoch's images. Those whose gradients were still being accumulated
are not in it, nor is half a validation: both come again. Lightning's own counters do not tell them apart.
"""

import warnings
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

KEY = "position"  # in a checkpoint
EPOCHS, BATCHES, VALIDATION = "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress"


@dataclass(frozen=True)
class Place:
    """A place in the data.

    Args:
        seed: of the data's order.
        set: which images train, in short; their order is another one where this is.
        epoch: from 0.
        images: how many of it are in the weights, over all devices.
        complete: whether no batch of it is left.
        validated: whether these weights were.
    """

    seed: int
    set: str
    epoch: int
    images: int = 0
    complete: bool = False
    validated: bool = False

    @property
    def inside(self) -> bool:
        """Not before an epoch."""
        return self.images > 0 or self.complete

    @classmethod
    def of_earlier_versions(cls, loops: dict[str, Any], data: Any, devices: int) -> Self:
        """What Lightning's counters say; the order is a new one."""
        epochs, batches = loops[EPOCHS]["current"], loops[BATCHES]
        if epochs["started"] == epochs["processed"]:
            return cls(data.seed, data.training_set, epochs["processed"])
        images = batches["current"]["processed"] * data.batch_size * devices
        return cls(data.seed, data.training_set, epochs["processed"], images, batches["is_last_batch"])


class Position(Callback):
    """Counts the images that have been trained on by the optimizer's steps, and lets a run go on behind them."""

    def __init__(self) -> None:
        self.resumed: Place | None = None
        self.before = 0  # batches of the epochs before that one
        self.images = self.batches = self.step = 0  # trained of this epoch, and the optimizer's steps, when it began
        self.validated_at = -1  # the number of steps at the last validation
        self.window_began, self.buffers = -1, dict[str, Tensor]()  # a batch, and what the model's buffers were then
        self.left_early = False  # an epoch, at a number of steps or a time

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.batches, self.step = 0, 0, trainer.global_step
        self.left_early = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.left_early = self._trained(trainer) < int(trainer.num_training_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated_at = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        progress: Any = trainer.fit_loop.epoch_progress.current
        epoch = progress.processed - self.left_early
        place = Place(data.seed, data.training_set, epoch)
        if progress.started > epoch:
            batches, total = self._trained(trainer), int(trainer.num_training_batches)
            images = data.shown(progress.processed, self.images, batches - self.batches)
            validated = self.validated_at == trainer.global_step
            place = replace(place, images=images, complete=batches >= total, validated=validated)
            if batches == self.window_began < trainer.fit_loop.epoch_loop.batch_progress.current.ready:
                checkpoint["state_dict"].update(self.buffers)
        checkpoint[KEY] = asdict(place)

    def _trained(self, trainer: Trainer) -> int:
        """How many batches of this epoch are in the weights."""
        every, total = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
        steps = trainer.global_step - self.step  # one comes after every `every`th batch of an epoch, and after its last
        return min((self.batches // every + steps) * every, total) if steps else self.batches

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring Lightning's counters to one of two states from which it goes on rightly: before an epoch, or within."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loops = checkpoint["loops"]["fit_loop"]
        if KEY in checkpoint:
            place = Place(**checkpoint[KEY])
        else:
            place = Place.of_earlier_versions(loops, data, trainer.world_size)
            if place.inside and not place.complete:
                _tell(trainer, "an earlier version wrote the checkpoint, and had another order: in the rest of this "
                      "epoch images come again, and others not at all")  # fmt: skip
        if place.set != data.training_set:  # in another order
            place = self._begin_again(trainer, place, "its images are others")
        elif trainer.overfit_batches and place.images and not place.complete:  # type: ignore[attr-defined]
            # Lightning has an order of its own
            place = self._begin_again(trainer, place, "of --trainer.overfit_batches")
        self.resumed, self.before = place, loops[BATCHES]["total"]["ready"] - loops[BATCHES]["current"]["ready"]
        data.seed, data.start = place.seed, (place.epoch, place.images)
        loops[EPOCHS] = _both(_counts(place.epoch + place.inside, place.epoch))
        loops[BATCHES] = {**_both(_counts(self.before)), "current": _counts(0), "is_last_batch": False}
        # A validation that has begun and not ended is what Lightning catches up on; here from its first batch.
        missing = place.inside and (place.complete or not place.validated)
        loops[VALIDATION] = {"total": _counts(int(missing), 0), "current": _counts(0), "is_last_batch": False}

    def _begin_again(self, trainer: Trainer, place: Place, reason: str) -> Place:
        if place.inside:
            _tell(trainer, f"epoch {place.epoch + 1} begins again: {reason}")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return Place(place.seed, data.training_set, place.epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resumed is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loop, total = trainer.fit_loop.epoch_loop, int(trainer.num_training_batches)
        if self.resumed.inside:
            done = total if self.resumed.complete else min(total, data.batches() - data.batches_left())
            self.images, self.batches, self.step = self.resumed.images, done, trainer.global_step
            state = {**_both(_counts(self.before + done)), "current": _counts(done), "is_last_batch": done == total}
            loop.batch_progress.load_state_dict(state)
        else:  # where steps are counted and not epochs, Lightning believes to be within an epoch in any case
            for each in (trainer.fit_loop, loop, loop.val_loop):
                each._restarting = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.accumulate_grad_batches > 1 and batch_idx % trainer.accumulate_grad_batches == 0:
            stored = pl_module.state_dict(keep_vars=True)
            self.buffers = {name: b.clone() for name, b in pl_module.named_buffers() if name in stored}
            self.window_began = batch_idx


def _tell(trainer: Trainer, words: str) -> None:
    if trainer.is_global_zero:
        warnings.warn(words, stacklevel=3)


def _counts(begun: int, ended: int | None = None) -> dict[str, int]:
    """A counter of Lightning's."""
    ended = begun if ended is None else ended
    return {"ready": begun, "started": begun, "processed": ended, "completed": ended}


def _both(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"total": counts, "current": dict(counts)}
