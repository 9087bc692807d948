"""A task that is none of ours, in one file: how bright an image is, from 0 to 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longvision.inference.task import Named, TaskPredictor
from longvision.models.backbone import create_backbone
from longvision.registry import TASKS, TaskEntry
from longvision.tasks.config import TaskConfig
from longvision.tasks.task import Task

ENTRY = TaskEntry(
    "support.toy_task.Brightness",
    "support.toy_task.BrightnessConfig",
    TASKS["classification"].sources,
    "support.toy_task.BrightnessPredictor",
    TASKS["classification"].output,
)


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig(TaskConfig):
    """How bright an image is.

    Args:
        bias: added to the answer.
    """

    bias: float = 0.0


class Brightness(Task):
    """Batches are those of a classification; what is learned is the mean of the image itself."""

    task_name = "brightness"
    pipeline = "image-feature-extraction"
    metric_names: ClassVar = {"closeness": "closeness"}

    def create_model(self, args: dict[str, Any]) -> nn.Module:
        return create_backbone(self.config.name, 1, self.info.channels, self.info.size, self.config.pretrained, args)

    def describe(self) -> dict[str, Any]:
        return {"head": {"bias": self.config.bias}}

    def off(self, images_BCHW: Tensor) -> Tensor:
        return (self.model(images_BCHW)[:, 0] + self.config.bias - images_BCHW.mean((1, 2, 3))).abs().mean()

    def training_step(self, batch: Any, index: int) -> Tensor:
        loss = self.off(batch[0])
        self.log_loss("train", loss, len(batch[0]))
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/closeness", 1 / (1 + self.off(batch[0])), sync_dist=True)

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test/closeness", 1 / (1 + self.off(batch[0])), sync_dist=True)


class BrightnessPredictor(TaskPredictor):
    def create(self) -> nn.Module:
        about = self.description
        return create_backbone(about.architecture, 1, about.input.channels, about.input.size, args=about.args)

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> list[float]:
        return (model(torch.stack(images))[:, 0] + self.description.head["bias"]).tolist()
