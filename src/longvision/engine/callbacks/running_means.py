"""The metrics of an epoch in which a run was interrupted are those of a run without a break."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

KEY = "running_means"  # in a checkpoint
Sums = dict[str, tuple[float, float]]  # logged name -> weighted sum, and the sum of weights


class RunningMeans(Callback):
    """Takes what Lightning has summed up of an epoch into its checkpoints, and out of them into the rest of the epoch.

    As with weights, what belongs to a step that was not finished is left out: its images come again.
    """

    def __init__(self) -> None:
        self.step, self.began = -1, Sums()  # the optimizer's steps and the sums when the accumulation of a step began
        self.carried, self.metrics = Sums(), dict[str, float]()  # of a checkpoint

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step, self.carried = -1, {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.step, self.began = trainer.global_step, self._sums(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for name, result in _results(trainer).items():
            total, weight = self.carried.pop(name, (0, 0))
            if weight:
                result.value, result.cumulated_batch_size = result.value + total, result.cumulated_batch_size + weight

    def _sums(self, trainer: Trainer) -> Sums:
        """Of this process so far."""
        sums = dict(self.carried)
        for name, result in _results(trainer).items():
            total, weight = sums.get(name, (0, 0))
            sums[name] = result.value + total, result.cumulated_batch_size + weight
        return sums

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        stepped = trainer.global_step != self.step
        sums = {
            name: (torch.as_tensor(total).item(), torch.as_tensor(weight).item())
            for name, (total, weight) in (self._sums(trainer) if stepped else self.began).items()
        }
        ranks: list[Any] = [sums]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, sums)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        checkpoint[KEY] = {"ranks": ranks, "metrics": metrics}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        if KEY not in checkpoint or epochs["started"] == epochs["processed"]:  # between epochs
            return
        ranks, self.metrics = checkpoint[KEY]["ranks"], checkpoint[KEY]["metrics"]
        if len(ranks) == trainer.world_size:
            self.carried = ranks[trainer.global_rank]
        elif trainer.is_global_zero:  # the same mean, over other devices
            names = dict.fromkeys(name for sums in ranks for name in sums)
            pairs = {name: [sums[name] for sums in ranks if name in sums] for name in names}
            self.carried = {name: (sum(t for t, _ in pair), sum(w for _, w in pair)) for name, pair in pairs.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For an epoch that has no batch or no validation left."""
        known = {name: total / weight for name, (total, weight) in self.carried.items() if weight} | self.metrics
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in known.items()})


def _results(trainer: Trainer) -> dict[str, Any]:
    """What Lightning sums up of the metrics that are means over an epoch."""
    results: Any = trainer.fit_loop.epoch_loop._results
    return {
        result.meta.name: result
        for result in results.values()
        if result.is_tensor and result.meta.on_epoch and result.meta.is_mean_reduction
    }
