"""Steps of the optimizer that are left out, because a loss or a gradient is not finite."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from longvision.errors import DivergedError

NAMED = 5  # images of a step
TOLD = 10  # steps of a run


class SkippedSteps(Callback):
    """Skips a step whose loss or gradient is NaN or infinite on any device: no weight, moment or running statistic
    changes, the schedule and the data go on. Where float16's loss scale is only too high, its scaler does the same,
    which is not counted.

    Args:
        most: so many of them in a row stop the training.
        last: the checkpoint to go on from, for the message.
        advice: against it.

    Raises:
        DivergedError: at the last of `most` in a row, or where a weight is not finite either; on every device.
    """

    def __init__(self, most: int, last: Path | None, advice: str) -> None:
        self.most, self.last, self.advice = most, last, advice
        self.skipped = self.in_a_row = 0
        self._order: Iterator[Any] = iter(())  # of the epoch's batches, beside the loader's
        self._epoch = -1
        self._losses: list[Tensor] = []  # of the batches of one step
        self._rows: list[list[int]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []  # of the model, and what they were before the step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._epoch != trainer.current_epoch:
            loader: Any = trainer.train_dataloader
            self._epoch = trainer.current_epoch
            batches: Any = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", ())
            self._order = iter(batches)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._losses, self._rows = [], []
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]
        self._rows.append(_rows(next(self._order, ())))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        losses = torch.stack(self._losses).isfinite()
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        # A sum in float16 overflows where no gradient does.
        norm = get_total_norm([g.float() if g.dtype == torch.float16 else g for g in gradients])
        found = torch.stack([~losses.all(), ~norm.isfinite() & (not _is_scaled(trainer))]).float()
        if trainer.world_size > 1:
            found = trainer.strategy.reduce(found, reduce_op="max")
        of_loss, of_gradient = found.tolist()  # waits for the device, once a step
        if not (of_loss or of_gradient):
            self.in_a_row = 0
            return
        for parameter in pl_module.parameters():
            parameter.grad = None
        for buffer, before in self._buffers:
            buffer.copy_(before)
        self._count(trainer, losses.tolist(), "loss" if of_loss else "gradient")
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            raise DivergedError(f"a weight is not finite at step {trainer.global_step}: {self._what_to_do()}")
        if self.in_a_row >= self.most:
            row = f"in {self.most} steps in a row, up to" if self.most > 1 else "at"
            raise DivergedError(
                f"the loss or its gradient was not finite {row} step {trainer.global_step}: {self._what_to_do()}"
            )

    def _count(self, trainer: Trainer, are_finite: list[bool], what: str) -> None:
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        is_another_s = what == "loss" and all(are_finite)  # that device names its images
        if not is_another_s and (self.skipped <= TOLD or self.in_a_row == self.most):
            named = self._images(trainer, are_finite)
            warnings.warn(f"step {trainer.global_step} is skipped, its {what} is not finite{named}", stacklevel=2)

    def _what_to_do(self) -> str:
        there = self.last is not None and self.last.exists()
        return f"{self.advice}; the last good state is {self.last}" if there else self.advice

    def _images(self, trainer: Trainer, are_finite: list[bool]) -> str:
        """Those of the batches with such a loss on this device, or of all of a step with such a gradient."""
        data: Any = getattr(trainer, "datamodule", None)
        images = data.images("train") if data else None
        batches = zip(self._rows, are_finite, strict=True)
        rows = [row for batch, is_finite in batches if all(are_finite) or not is_finite for row in batch]
        named = [_name(images, row) for row in rows[:NAMED]] + ["…"] * (len(rows) > NAMED)
        return f"; its {len(rows)} images: {', '.join(named)}" if rows else ""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.skipped and trainer.is_global_zero:
            steps = f"{self.skipped} of {trainer.global_step} steps"
            warnings.warn(f"{steps} were skipped, their loss or gradient was not finite", stacklevel=2)

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["skipped"]


def _is_scaled(trainer: Trainer) -> bool:
    """Whether the loss is scaled for float16: a gradient that overflows lowers the scale. Below 1 it is no scale's."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() >= 1


def _rows(batch: Any) -> list[int]:
    """The numbers of a batch's images, from what a sampler gives for it."""
    return [draw[0] if isinstance(draw, tuple) else int(draw) for draw in batch]


def _name(images: Any, row: int) -> str:
    file = images.file_of(row) if hasattr(images, "file_of") else None
    return str(file) if isinstance(file, str | Path) else f"number {row}"
