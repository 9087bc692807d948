"""An average of the weights, which is validated and saved in their place."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

KEY = "trained_state_dict"  # in a checkpoint, whose "state_dict" holds the average


class WeightAverage(Callback):
    """Exponential moving average of parameters and running statistics, one step of it a step of the optimizer.

    In validation and after training the model holds the average, and so does the "state_dict" of a checkpoint, which
    evaluation and prediction read; the weights to train on are beside it.

    Early on the decay is (1 + step) / (10 + step), where that is less: the weights of the initialisation are forgotten.
    It comes behind the callbacks that change what a checkpoint says of the weights.

    Args:
        decay: from 0 to 1, as 0.9999.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.step = 0  # of the optimizer, at the last update
        self.own: dict[str, Tensor] = {}  # the model's
        self.other: dict[str, Tensor] = {}  # the average; while the model holds that, the weights to train on
        self.is_in_model = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.own = _averaged(pl_module)
        if not self.other:
            self.step = trainer.global_step
        begun = {name: self.other.get(name, own).detach() for name, own in self.own.items()}
        self.other = {name: tensor.to(self.own[name].device, copy=True) for name, tensor in begun.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            decay = min(self.decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.other.values()), [own.detach() for own in self.own.values()], 1 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.other:
            return
        by_id = {id(own): self.other[name] for name, own in self.own.items()}
        named = pl_module.state_dict(keep_vars=True)  # a parameter that two layers share has two names
        here = checkpoint["state_dict"]
        there = {name: by_id.get(id(named.get(name)), tensor) for name, tensor in here.items()}
        average, trained = (here, there) if self.is_in_model else (there, here)
        checkpoint.update({"state_dict": average, KEY: trained})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if KEY in checkpoint:
            self.step = checkpoint["global_step"]
            self.other = {name: checkpoint["state_dict"][name] for name in _averaged(pl_module)}
            pl_module.load_state_dict(checkpoint[KEY])

    @torch.no_grad()
    def _swap(self) -> None:
        """In place: validation is in inference mode, and what is made there cannot be changed outside."""
        for name, own in self.own.items():  # none before training, when it is seen to that validation runs
            before = own.clone()
            own.copy_(self.other[name])
            self.other[name].copy_(before)
        self.is_in_model = not self.is_in_model


def _averaged(pl_module: LightningModule) -> dict[str, Tensor]:
    """What is averaged: each parameter and each running statistic, once."""
    state = pl_module.state_dict(keep_vars=True).items()
    once = {id(tensor): (name, tensor) for name, tensor in reversed(list(state)) if tensor.is_floating_point()}
    return dict(reversed(list(once.values())))
