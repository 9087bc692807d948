"""What every task is to a run: a model with a loss, a figure that says which epoch is best, and pictures."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningModule
from torch import Tensor, nn

from longvision.engine.run import Run
from longvision.tasks.optim import Schedule, adamw


class Task(LightningModule):
    """A subclass makes `model` and says how a batch is trained and measured.

    It logs "train/loss", and its figures as "val/NAME" and "test/NAME".

    Args:
        name: of the backbone, any timm model.
        args: further arguments of that model.
        classes: their names.
        pretrained: whether the weights did not start at random.
    """

    kind: ClassVar[str]  # the task's name in a recipe
    pipeline: ClassVar[str]  # and in a model card
    figures: ClassVar[dict[str, str]]  # logged name -> words; the first one decides which epoch is best
    leaves: ClassVar[str]  # the pictures of a run
    model: nn.Module

    def __init__(self, name: str, args: dict[str, Any] | None, classes: list[str], pretrained: bool | str) -> None:
        super().__init__()
        self.name, self.args, self.classes, self.pretrained = name, dict(args or {}), classes, bool(pretrained)
        self.optim: dict[str, Any] = {}
        self.warmup_epochs, self.warmup_steps = 0.0, 0

    @classmethod
    def monitor(cls) -> str:
        return f"val/{next(iter(cls.figures))}"

    def describe(self) -> dict[str, Any]:
        """What prediction has to know of the model beside architecture, arguments and classes."""
        return {}

    def evaluated(self, data: Any, split: str) -> int:
        """How many pictures the last evaluation saw."""
        return len(data.images(split))

    def draw(self, data: Any, split: str, folder: Path, title: str) -> None:
        """Write the pictures that `leaves` names, all but the curves."""
        raise NotImplementedError

    def class_table(self) -> list[str]:
        """Lines that say what the last evaluation found for each class; none where a picture says it better."""
        return []

    def usage(self, data: Any, run: Run) -> str:
        """How the weights are used from Python, for the card."""
        return ""

    def set_optimiser(self, lr: float, schedule: Schedule = "cosine", **values: Any) -> None:
        """Keep what `adamw` takes. Raises ValueError for what no training can use."""
        layer_decay = values.get("layer_decay")
        check_range(lr=(lr, 0, 10), final_lr=(values["final_lr"], 0, 1), weight_decay=(values["weight_decay"], 0, 10))
        check_range(layer_decay=(1 if layer_decay is None else layer_decay, 0.01, 1))
        self.optim = {"lr": lr, "schedule": schedule, **values}

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches  # first: before it the number of batches is not known
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        warmup = self.warmup_steps + self.warmup_epochs * per_epoch
        return adamw(self.model, warmup_steps=warmup, steps=steps, **self.optim)

    def check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} at step {self.global_step}: lower --model.lr "
                f"(now {self.optim['lr']}), or train in --trainer.precision 32-true"
            )


def check_range(**values: tuple[float, float, float]) -> None:
    for name, (value, low, high) in values.items():
        if not low <= value <= high:
            raise ValueError(f"--model.{name} is {value}: expected a number from {low:g} to {high:g}")
