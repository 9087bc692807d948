"""What every task is to a run: a model with a loss, metrics one of which tells the best epoch, and drawings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import SumMetric

from longvision.models.backbone import checkpoint_activations
from longvision.tasks.config import TaskConfig
from longvision.tasks.optim import make_optimizer
from longvision.types import DataInfo

NO_WEIGHT = 1e-6  # beside one pixel's, 1, it does not count
Artifacts = dict[str, Callable[[Path], None]]  # file name -> what writes it


class Task(LightningModule):
    """A subclass makes its model, and says how a batch is trained and measured. It knows no run folder.

    It logs its metrics as "val/NAME" and "test/NAME", and with `log_loss` "train/loss" and "val/loss", which are the
    same quantity: the main loss, without an auxiliary one and without label smoothing. Batches are (images, targets).

    Args:
        config: its options.
        info: what it must know of its data.
    """

    task_name: ClassVar[str]  # in the registry
    pipeline: ClassVar[str]  # in a model card
    metric_names: dict[str, str]  # logged name -> words; the first one tells which epoch is best
    config: Any
    model: nn.Module

    def __init__(self, config: TaskConfig, info: DataInfo) -> None:
        super().__init__()
        self.config, self.info = config, info
        self._images = SumMetric()
        self.evaluated = 0  # images that the last evaluation saw, on all devices: those that cannot be read are not
        drop_path = {"drop_path_rate": config.drop_path} if config.drop_path else {}
        self.model = self.create_model({**self.args, **drop_path})
        if config.checkpoint:
            checkpoint_activations(self.model)

    @property
    def args(self) -> dict[str, Any]:
        """The arguments of the backbone that rebuild it for prediction; stochastic depth belongs to training alone."""
        return dict(self.config.args or {})

    def monitor(self) -> str:
        """The metric whose highest value tells the best epoch."""
        return f"val/{next(iter(self.metric_names))}"

    def create_model(self, args: dict[str, Any]) -> nn.Module:
        """For `self.config` and `self.info`, the backbone with these arguments."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What prediction has to know of the model beside architecture, arguments and classes."""
        return {}

    def artifacts(self, data: Any, split: str, title: str) -> Artifacts:
        """What can be drawn or written of the last evaluation, made when it is called. Runs on one device alone."""
        return {}

    def sections(self, data: Any, split: str) -> dict[str, str]:
        """Heading -> HTML (`viz.page`) of what a run's page shows of the last evaluation. Runs on one device alone."""
        return {}

    def class_table(self) -> list[str]:
        """Lines that say what the last evaluation found for each class; none where a drawing says it better."""
        return []

    def remarks(self) -> list[str]:
        """What else is to be told of the last evaluation, a line each."""
        return []

    def check_fit(self, data: Any) -> None:
        """Raises UserError for what no training can start from, as far as options tell; `data` is not set up yet."""

    def on_fit_start(self) -> None:
        self.check_fit(getattr(self.trainer, "datamodule", None))

    def configure_optimizers(self) -> Any:
        steps = self.trainer.estimated_stepping_batches  # first: before it the number of batches is not known
        per_epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        warmup = self.config.warmup_steps + self.config.warmup_epochs * per_epoch
        return make_optimizer(self.model, self.config, warmup, steps)

    def log_loss(self, split: str, loss: Tensor, weight: int | Tensor) -> None:
        """The main loss of a batch; an epoch's is the mean by `weight`, over all devices.

        A weight that is a tensor may be 0; the mean of an epoch without any other is the loss itself, not 0 / 0.
        """
        loss = loss.detach()
        if split == "train":
            self.log("train/loss_step", loss, on_step=True, on_epoch=False)  # this device's: no waiting for the others
            loss, weight = loss.nan_to_num(0, 0, 0), trained_weight(loss, weight)
        elif isinstance(weight, Tensor):
            weight = weight.float().clamp_min(NO_WEIGHT)
        self.log(f"{split}/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=weight)  # type: ignore

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._images.update(len(batch[0]))

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._images.update(len(batch[0]))

    def on_validation_end(self) -> None:
        self._count_images()

    def on_test_end(self) -> None:
        self._count_images()

    def _count_images(self) -> None:
        self.evaluated = int(self._images.compute())  # on every device: it gathers
        self._images.reset()


def trained_weight(loss: Tensor, weight: int | Tensor) -> Tensor:
    """Of a training batch in an epoch's mean: next to none if its loss is not finite, since its step is skipped."""
    return (weight * loss.isfinite()).float().clamp_min(NO_WEIGHT)
