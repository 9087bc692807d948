"""The same total batch on one device and on sixty-four: what a device cannot take at once is accumulated."""

import warnings
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from longvision.data.order import EpochOrder
from longvision.errors import UserError


def keep_total_batch(trainer: Trainer, data: Any) -> list[str]:
    """Choose batch and accumulation so that a step of the optimizer sees `data.total_batch` images over all devices, or
    the batches that there are in an epoch of fewer images.

    -> the choice in words, and that there are fewer images; nothing where no total is asked for. Every process calls
    it, before training.

    Raises:
        UserError: a total that does not divide among the devices, or accumulation that is asked for besides.
    """
    total = getattr(data, "total_batch", None)  # data of one's own may not have it
    devices, asked = trainer.world_size, trainer.accumulate_grad_batches
    if total is None:
        return []
    if total % devices:
        raise UserError(
            f"--data.total_batch {total} does not divide among {devices} devices: choose a multiple of {devices}"
        )
    share = total // devices
    data.batch_size = max(size for size in range(1, min(data.batch_size, share) + 1) if share % size == 0)
    there_are = EpochOrder(data.count, 0, devices, batch=data.batch_size).steps()
    trainer.accumulate_grad_batches = min(share // data.batch_size, there_are)
    if asked not in (1, trainer.accumulate_grad_batches):
        raise UserError(
            f"--trainer.accumulate_grad_batches {asked}: --data.total_batch {total} decides how many batches are "
            "accumulated, leave one of the two out"
        )
    batches = trainer.accumulate_grad_batches
    chosen = (
        f"{min(batches * data.batch_size * devices, data.count)} images a step: {devices} device{'s' * (devices > 1)}, "
        f"{batches} batch{'es' * (batches > 1)} of {data.batch_size} on each"
    )
    if data.count >= total:
        return [chosen]
    return [chosen, f"--data.total_batch {total}: there are {data.count} training images, a step never has more"]


class WholeSteps(Callback):
    """Tells where an epoch ends with a step of fewer batches, as Lightning divides by all that are asked for. An
    `EpochOrder` has whole steps; a limit of the batches may have not, nor a set of fewer images."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches, asked = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        if trainer.is_global_zero and batches % asked:
            warnings.warn(
                f"the last step of an epoch has {batches % asked} of the {asked} batches that are accumulated: its "
                f"gradient is divided by {asked} all the same",
                stacklevel=2,
            )
