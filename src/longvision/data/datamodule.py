"""The Lightning side of every set: its splits, opened once, in batches."""

import gc
import os
import warnings
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from longvision.data.augment import AnyAugment
from longvision.data.dataset import TransformedSet
from longvision.data.fingerprint import Fingerprint
from longvision.data.io.listing import spread_evenly
from longvision.data.loading import LoaderConfig
from longvision.data.looking import found_in_training_images
from longvision.data.order import EpochLoader, EpochOrder, EvaluationOrder, seed_all, seed_of_step
from longvision.data.ordering import check_model, look_at_shapes, order_of
from longvision.data.packing import PackingConfig
from longvision.data.sources.base import ImageSet, Source, relative
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UserError
from longvision.types import DataInfo, Split

MOST_WORKERS = 4
NEEDED: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}


class DataModule(LightningDataModule):
    """Batches of any source's images and labels. What they look like is said by the task's transforms, which `augment`
    makes.

    Args:
        source: which images there are, with what labels.
        input: how an image becomes a model's input.
        augment: how training images are varied.
        loader: batch size and worker processes.

    Order and augmentation follow from torch's seed at construction, the epoch and the image alone.

    Raises:
        UserError: `augment` asks for what the source does not have.
    """

    def __init__(self, source: Source[Any], input: InputSpec, augment: AnyAugment, loader: LoaderConfig) -> None:
        super().__init__()
        self.source, self.input, self.augment = source, input, augment
        self.transforms: Any = augment.transforms(input, source)
        self.batch_size, self.total_batch, self.balance = loader.batch_size, loader.total_batch, loader.balance
        self.unreadable_share = loader.unreadable
        self.sizes = loader.sizes
        self.packing = loader if isinstance(loader, PackingConfig) and loader.pack else None
        self.workers = min(MOST_WORKERS, _cores()) if loader.workers is None else loader.workers
        what = source.has_masks, source.palette, source.multilabel
        self.info = DataInfo(source.name, source.classes, input.size, input.channels, *what)
        self.name, self.classes, self.has_test = source.name, source.classes, source.has_test
        self.size, self.channels = input.size, input.channels
        self.seed = torch.initial_seed()
        self.start = (0, 0)  # the epoch that trains first, and how many of its images are not shown again
        self._opened: dict[Split, ImageSet[Any]] = {}
        self._loaded: dict[Split, TransformedSet] = {}
        self.measured: dict[str, Any] = {}  # options of the data that `setup` found in the training images
        self._looked = False  # at them
        self.shapes_N2: np.ndarray | None = None  # of training images that are packed, height and width
        self._made: tuple[Any, EpochOrder] | None = None  # what `order` is made for, and one

    def setup(self, stage: str | None = None) -> None:
        """Open what the stage needs, so that a mistake in the files shows before the first step."""
        everything: tuple[Split, ...] = ("train", "val", "test") if self.has_test else ("train", "val")
        needed = NEEDED.get(stage or "", everything)
        for split in needed:
            self.images(split)
        if "train" in needed:
            self._look_once()
        if self.trainer is not None:
            self.take_up_model(getattr(self.trainer.lightning_module, "model", None), self.trainer)
        if "train" in needed and (self.packing is None or self.input.patch > 1):
            look_at_shapes(self)
            self.order()  # it may be refused

    def take_up_model(self, model: Any, trainer: Any) -> None:
        """Of packs, its patches'. Raises UserError where it, or its trainer, does not take what these options make."""
        check_model(self, model, trainer)
        if self.packing:
            self._set_input(patch=model.patch_embed.patch)

    def _look_once(self) -> None:
        """At the training images, in the first process, which tells the others."""
        if not self._looked and (self.trainer is None or self.trainer.is_global_zero):
            self._take_up(found_in_training_images(self))
        if self.trainer is not None and self.trainer.world_size > 1:
            self._take_up(self.trainer.strategy.broadcast(self.measured))

    def _take_up(self, measured: dict[str, Any]) -> None:
        self._looked, self.measured = True, measured
        self._set_input(**measured)

    def _set_input(self, **values: Any) -> None:
        self.input = replace(self.input, **values)
        self.transforms = self.augment.transforms(self.input, self.source)

    def images(self, split: Split) -> ImageSet[Any]:
        """The PIL images of one split with their labels, checked and opened once. Raises UserError for mistakes."""
        if split not in self._opened:
            if split == "test" and not self.has_test:
                raise UserError(f"{self.name} has no test images: add them as test, or use the validation images")
            self.source.check(split)
            self._opened[split] = self.source.split(split)
        return self._opened[split]

    def examples(self, split: Split, count: int) -> list[int]:
        """At most `count` numbers of images, spread evenly over a split."""
        return spread_evenly(len(self.images(split)), count)

    def unreadable(self, split: Split) -> list[str]:
        """A line, or none, for the images of a split that could not be read when it was loaded."""
        found = self._loaded[split].unreadable if split in self._loaded else ""
        return [f"{found}: not counted"] if found else []

    def count_unreadable_together(self, split: Split) -> None:
        """Of several devices, each of which reads a share of a split. Raises UserError for too many."""
        if self.trainer is None or self.trainer.world_size == 1 or split not in self._loaded:
            return
        strategy = self.trainer.strategy
        self._loaded[split].count_together(
            lambda marks_N: strategy.reduce(marks_N.to(strategy.root_device), reduce_op="sum")
        )

    def name_of(self, split: Split, row: int) -> str:
        """Of an image, its path from the set's folder, or its number where it has none."""
        file, name = getattr(self.images(split), "file_of", lambda row: None)(row), self.source.name
        folder = name if os.path.isdir(name) else os.path.dirname(name)
        return relative(file, folder or os.curdir) if isinstance(file, str) else f"{split} image {row + 1}"

    def sample(self, split: Split, index: int) -> tuple[Image.Image, Tensor, Any]:
        """One image as 8 bits, what an evaluated model sees of it (C, H, W), and its label."""
        image, label = self.images(split)[index]
        return self.input.shown(image), *self.transforms.evaluate(image, label)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What a run notes of the set; checkpoints say it in short."""
        return Fingerprint.of(self.source)

    @property
    def training_set(self) -> str:
        """Which images train, in short: with another one, an epoch's order is another."""
        return self.fingerprint.digest("train")

    @property
    def count(self) -> int:
        """Of training images."""
        return len(self.images("train"))

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"data": self.fingerprint.summary}

    def order(self) -> EpochOrder:
        """In which the training images are shown, beginning at `start`, by this device."""
        made_for = (self.seed, self.batch_size, self.place(), self.accumulated())
        if self._made is None or self._made[0] != made_for:
            self._made = made_for, order_of(self)
        order = copy(self._made[1])
        order.set_epoch(*self.start)
        return order

    def place(self) -> tuple[int, int]:
        """How many devices there are, and which one this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def accumulated(self) -> int:
        """Batches of a step of the optimizer."""
        if self.trainer:
            return self.trainer.accumulate_grad_batches
        return max(1, (self.total_batch or 0) // self.batch_size)

    def batches(self) -> int:
        """Training steps of a whole epoch, on each device."""
        return self.order().steps()

    def batches_left(self) -> int:
        """Of the epoch at `start`."""
        order = self.order()
        return order.steps(order.begin)

    def shown(self, epoch: int, begin: int, batches: int) -> int:
        """How many images of an epoch's order have been shown when as many steps are done behind the first `begin`."""
        order = self.order()
        order.set_epoch(epoch, begin)
        return order.after(batches)

    def train_dataloader(self) -> DataLoader:
        order = self.order()
        if order.share() < self.batch_size and not self.packing:
            warnings.warn(f"{self.name} has fewer training images than one batch ({self.batch_size})", stacklevel=2)
        if self.sizes or self.packing:
            return self._loader("train", None, sampler=order)
        return self._loader("train", self.batch_size, sampler=order)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: Split) -> DataLoader:
        """Lightning's own sampler for several devices would show images twice."""
        batch, (devices, rank) = self.transforms.evaluation_batch or self.batch_size, self.place()
        if self.packing:
            batch = self.packing.evaluated_together(self.input.most_patches)
        if devices == 1 or self.trainer.overfit_batches:  # type: ignore[union-attr]
            return self._loader(split, batch)
        return self._loader(split, None, sampler=EvaluationOrder(len(self.images(split)), batch, devices, rank))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """What is drawn in a training step, by mixup and by the model, follows from its number too."""
        if self.trainer is not None and self.trainer.training:
            number = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            seed_all(seed_of_step(self.seed, self.trainer.current_epoch, number, self.trainer.global_rank))
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.transforms.mix(batch) if self.trainer is not None and self.trainer.training else batch

    def _loader(self, split: Split, batch_size: int | None, **options: Any) -> DataLoader:
        """`batch_size` None: the sampler makes the batches."""
        training = split == "train"
        folder = self.source.name if os.path.isdir(self.source.name) else None
        sides = self.sizes if training and not self.packing else ()
        specs = [replace(self.input, size=(side, side)) for side in sides]
        sizes = {spec.size: self.augment.transforms(spec, self.source) for spec in specs}
        where = f"{self.name} ({split})"
        dataset = TransformedSet(
            self.images(split), self.transforms, where, training, self.unreadable_share, folder, sizes
        )
        self._loaded[split] = dataset
        return EpochLoader(
            dataset,
            batch_size=batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=dataset.collate if batch_size else as_it_is,
            worker_init_fn=_share_objects,
            **options,
        )


def _share_objects(worker: int) -> None:
    """With the process that a worker was forked from: garbage collection, which writes to all it looks at, leaves them
    alone."""
    gc.freeze()


def as_it_is(batch: Any) -> Any:
    return batch


def _cores() -> int:
    """Those that the process may use: in a container often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
