"""The Lightning side of every set: its splits, opened once, in batches."""

import os
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from longvision.data.sources.sets import Split

NEEDED: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": (),
}


class SplitData(LightningDataModule):
    """A subclass says what a split's samples are (`dataset`), how they become a batch (`collate`), and in what number.

    Args:
        source: has `classes`, `has_test` and `split`.
        preprocess: has `size` and `channels`.
        batch_size: training images a step.
        workers: processes that load images; at most `most_workers`, one a core, when None.
        name: of the set, for messages.
    """

    most_workers: ClassVar[int] = 4
    collate: Any  # samples -> a batch

    def __init__(self, source: Any, preprocess: Any, batch_size: int, workers: int | None, name: str) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: expected at least 1 image a batch")
        if workers is not None and workers < 0:
            raise ValueError(f"workers {workers}: expected 0 (load in the main process) or more")
        self.source, self.preprocess, self.name = source, preprocess, name
        self.batch_size = self.evaluation_batch = batch_size
        self.workers = min(self.most_workers, os.cpu_count() or 1) if workers is None else workers
        self.classes, self.has_test = source.classes, source.has_test
        self.size, self.channels = preprocess.size, preprocess.channels
        self._sets: dict[Split, Any] = {}

    def dataset(self, split: Split) -> Dataset:
        """The samples of a split as a model sees them."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Open what the stage needs, so that a mistake in the files shows before the first step."""
        everything: tuple[Split, ...] = ("train", "val", "test") if self.has_test else ("train", "val")
        for split in NEEDED.get(stage or "", everything):
            self.images(split)

    def images(self, split: Split) -> Any:
        """The PIL images of one split with their labels, opened once."""
        if split not in self._sets:
            if split == "test" and not self.has_test:
                raise ValueError(f"{self.name} has no test images: add them as test, or use the validation images")
            self._sets[split] = self.open(split)
        return self._sets[split]

    def open(self, split: Split) -> Any:
        return self.source.split(split)

    def train_dataloader(self) -> DataLoader:
        ranks = self.trainer.world_size if self.trainer else 1
        # a last batch of one or two images makes a wild step; a set smaller than a batch has no other
        drop_last = len(self.images("train")) // ranks > self.batch_size
        return self._loader("train", self.batch_size, shuffle=True, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", self.evaluation_batch)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self.evaluation_batch)

    def _loader(self, split: Split, batch_size: int, shuffle: bool = False, drop_last: bool = False) -> DataLoader:
        return DataLoader(
            self.dataset(split),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate,
        )
