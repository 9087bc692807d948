"""A training so small that it can be stopped anywhere and compared: numbered images, a linear model with dropout."""

import contextlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from longvision.data.augment import Augment
from longvision.data.datamodule import DataModule
from longvision.data.loading import LoaderConfig
from longvision.data.packing import PackingConfig
from longvision.data.sources.base import ImageSet, Listed, Source
from longvision.data.transforms.input_spec import InputSpec
from longvision.engine import trainer as training
from longvision.engine.callbacks.stop import Agreed
from longvision.engine.run import Run
from longvision.tasks.config import TaskConfig
from longvision.tasks.task import Task
from longvision.types import DataInfo, PackedImages, Split

SIDE, PATCH = 8, 2
VARIED = Augment(crop_scale=(0.5, 1.0), flip=0.5, erase=0.25, rand_augment="rand-m5-n1")


class Numbered(Source[int]):
    """As many images as wanted; the label of each is its own number."""

    name, has_test = "numbered", False
    classes: ClassVar = [str(number) for number in range(32)]

    def __init__(self, count: int) -> None:
        self.count = count

    def split(self, split: Split) -> ImageSet[int]:
        return ImageSet(range(self.count if split == "train" else 4), _read)

    def identified(self, split: Split, row: int, item: int) -> Listed:
        return Listed(f"{split} {row}", self.classes[item])


def _read(number: int) -> tuple[Image.Image, int]:
    pixels = np.random.RandomState(number).randint(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels), number


@dataclass(frozen=True, kw_only=True)
class Loading(LoaderConfig, PackingConfig):
    """As a classification's."""


class Linear(Task):
    """Keeps the numbers of the images that it was trained on, and can be stopped in any of Lightning's moments."""

    task_name, pipeline = "counted", "image-classification"
    metric_names: ClassVar = {"score": "score"}

    def __init__(self, config: TaskConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.seen: list[int] = []
        self.validated: list[int] = []
        self.stop_at: tuple[str, int, int] | None = None  # hook, epoch, batch

    def create_model(self, args: dict[str, Any]) -> nn.Module:
        layers = nn.Linear(3 * SIDE * SIDE, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        return nn.Sequential(nn.AdaptiveAvgPool2d(SIDE), nn.Flatten(), *layers, nn.Linear(6, len(self.info.classes)))

    def training_step(self, batch: Any, index: int) -> Tensor:
        self.stop("training_step", index)
        images_BCHW, target = batch
        self.seen += (target if target.ndim == 1 else target.argmax(1)).tolist()
        return nn.functional.cross_entropy(self.model(images_BCHW), target)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.stop("after_the_loss", self.trainer.fit_loop.epoch_loop.batch_idx)

    def validation_step(self, batch: Any, index: int) -> None:
        self.stop("validation_step", index)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append(self.global_step)
        self.log("val/score", torch.tensor(float(self.global_step)))

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        self.stop("on_train_batch_start", index)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.stop("on_train_batch_end", index)

    def on_train_epoch_start(self) -> None:
        self.stop("on_train_epoch_start", 0)

    def on_train_epoch_end(self) -> None:
        self.stop("on_train_epoch_end", 0)

    def stop(self, where: str, index: int) -> None:
        if self.stop_at == (where, self.current_epoch, index) and not self.trainer.sanity_checking:
            raise Agreed  # in every process at once

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)


class PackedMean(nn.Sequential):
    """Of packed images: their mean patches, through the layers."""

    takes_packed, patch_embed = True, SimpleNamespace(patch=PATCH, stride=PATCH)

    def forward(self, images: PackedImages) -> Tensor:
        parts = images.patches[0].split(list(images.lengths))
        return super().forward(torch.stack([part.mean(0) for part in parts]))


class PackedLinear(Linear):
    def create_model(self, args: dict[str, Any]) -> nn.Module:
        return PackedMean(nn.Linear(3 * PATCH**2, 6), nn.Dropout(0.5), nn.Linear(6, len(self.info.classes)))


def fit(folder: Path, count: int = 22, stop: tuple[str, int, int] | None = None, **options: Any) -> Linear:
    """Train, or go on with what is in the folder, until Ctrl-C in the moment `stop`.

    `options`: of Lightning's Trainer, and augment, and those of loading; save_every, others (callbacks),
    task (a subclass of `Linear`).
    """
    torch.manual_seed(0)
    others, kind = options.pop("others", ()), options.pop("task", Linear)
    save_every = options.pop("save_every", 0)
    given = {each.name: options.pop(each.name) for each in fields(Loading) if each.name in options}
    loader = Loading(**{"batch_size": 4, "workers": 0, **given})
    spec = InputSpec((SIDE, SIDE))
    if loader.pack:
        spec, kind = replace(spec, resize="area", patch=PATCH), PackedLinear
    data = DataModule(Numbered(count), spec, options.pop("augment", VARIED), loader)
    task = kind(TaskConfig(name="linear"), data.info)
    task.stop_at = stop
    options = {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1, **options}
    trainer, run = training.make_trainer(options), Run(folder)
    training.keep_total_batch(trainer, data)
    folder.mkdir(parents=True, exist_ok=True)
    training.write_into(trainer, run, task.monitor(), others, save_every=save_every)
    trainer.logger = None
    with contextlib.suppress(KeyboardInterrupt):
        training.fit_or_interrupt(trainer, task, data, run.last if run.last.exists() else None)
    return task
