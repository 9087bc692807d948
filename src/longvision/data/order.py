"""In which order an epoch shows its images, and with which random numbers each is varied: told by seed and epoch alone.

So an epoch that was interrupted goes on as if it had not been, and worker processes and devices change nothing.
"""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from longvision.types import Size


class Draw(NamedTuple):
    """An image as training sees it once.

    Args:
        row: its number.
        seed: of its augmentation; None where nothing is drawn anew.
        size: height and width that it is brought to, pixels; None for the data's own.
        length: how many of its patches are shown, where it is packed.
    """

    row: int
    seed: int | None = None
    size: Size | None = None
    length: int | None = None


class EpochOrder(DistributedSampler[Draw]):
    """One device's share of the images in the order of an epoch.

    Of the whole order, device r of R takes places r, r + R, r + 2R, …: what all of them have read so far is always its
    beginning. The few images that do not divide among the devices, or are not enough for a step, are left out of that
    epoch.

    Args:
        count: images in all, and places in an epoch.
        seed: of the whole training.
        devices: how many share an epoch.
        rank: which of them this is.
        batch: images of a device in a step.
        repeats: how often an image that an epoch shows comes in it, each time varied otherwise; of repeats > 1 an epoch
            shows count / repeats of the images (repeated augmentation, arXiv 1901.09335, as DeiT's `RASampler`).
        labels_N: the class of each image, where every class is to come as often (`balanced`).
        accumulated: batches of a step of the optimizer. An epoch has no step of fewer, unless it has no other: their
            gradient would count for less.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        devices: int = 1,
        rank: int = 0,
        *,
        batch: int = 1,
        repeats: int = 1,
        labels_N: np.ndarray | None = None,
        accumulated: int = 1,
    ) -> None:
        super().__init__(range(count), devices, rank, seed=seed)  # type: ignore[arg-type]
        self.count, self.begin, self.batch = count, 0, batch
        self.repeats, self.labels_N = repeats, labels_N
        self.accumulated = accumulated if self.share() // batch >= accumulated else 1

    def set_epoch(self, epoch: int, begin: int | None = None) -> None:
        """The epoch that is read next, without its first `begin` images. Lightning calls this before each epoch."""
        if begin is None:
            begin = self.begin if epoch == self.epoch else 0
        self.epoch, self.begin = epoch, begin

    def share(self, begin: int = 0) -> int:
        """How many images there are for a device after the first `begin`."""
        left = self.count - begin
        return max(left // self.num_replicas, min(1, left))

    @property
    def drops_last(self) -> bool:
        """A last batch of one or two images makes a wild step; a set smaller than a batch has no other."""
        return self.share() > self.batch

    def steps(self, begin: int = 0) -> int:
        """Of each device, behind the first `begin` images."""
        share = self.share(begin)
        steps = share // self.batch if self.drops_last else math.ceil(share / self.batch)
        return steps - steps % self.accumulated

    def after(self, steps: int) -> int:
        """How many images of the epoch all devices together have been shown when as many steps are done behind the
        first `begin`."""
        return min(self.begin + steps * self.batch * self.num_replicas, self.count)

    def __len__(self) -> int:
        """Images of a device in a whole epoch, also in one that goes on."""
        return self._shown()

    def _shown(self, begin: int = 0) -> int:
        """Images of a device in the steps behind the first `begin`."""
        return min(self.steps(begin) * self.batch, self.share(begin))

    def __iter__(self) -> Iterator[Draw]:
        rows_N, seeds_N = self.drawn(self.epoch)
        for place in range(self._shown(self.begin)):
            at = self.begin + (self.rank + place * self.num_replicas) % (self.count - self.begin)
            yield Draw(int(rows_N[at]), int(seeds_N[at]))

    def drawn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The images (N,) and seeds uint64 (N,) of a whole epoch, for all devices together."""
        draw = np.random.default_rng([self.seed, epoch])
        order_N, seeds_N = draw.permutation(self.count), draw.integers(2**63, size=self.count).astype(np.uint64)
        if self.labels_N is not None:
            order_N = balanced(order_N, self.labels_N, draw)
        rows_N = np.repeat(order_N, self.repeats)[: self.count]
        return rows_N, seeds_N[rows_N] + times_before(rows_N)


def times_before(rows_N: np.ndarray) -> np.ndarray:
    """How often each row has come before, uint64 (N,): seeds that it is added to differ from time to time."""
    places_N = np.argsort(rows_N, kind="stable")
    sorted_N, times_N = rows_N[places_N], np.empty(len(rows_N), np.uint64)
    times_N[places_N] = np.arange(len(rows_N)) - np.searchsorted(sorted_N, sorted_N)
    return times_N


def balanced(order_N: np.ndarray, labels_N: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """An order of as many places, in which each class that has images comes as often, give or take one: the images of a
    small class come several times, each as often as the others, of a large class come some.

    Args:
        order_N: the numbers of all images, shuffled.
        labels_N: their classes, by number.
        draw: shuffles the places of the classes.
    """
    rows_of = [order_N[labels_N[order_N] == label] for label in np.unique(labels_N)]
    classes_N = draw.permutation(np.arange(len(order_N)) % len(rows_of))
    result = np.empty_like(order_N)
    for label, rows in enumerate(rows_of):
        places = np.flatnonzero(classes_N == label)
        result[places] = np.resize(rows, len(places))
    return result


class EvaluationOrder(DistributedSampler[list[int]]):
    """One device's share of the images to evaluate, in batches: each image once, over all devices.

    Device r of R takes images r, r + R, r + 2R, …. All have as many batches, as what they do together needs (batch
    norms are sent before each); a device with one image more than others puts it into its last batch. Only where there
    are fewer images than devices does one come twice.
    """

    def __init__(self, count: int, batch: int, devices: int = 1, rank: int = 0) -> None:
        super().__init__(range(count), devices, rank, shuffle=False)  # type: ignore[arg-type]
        self.count, self.batch = count, batch

    def __len__(self) -> int:
        return max(1, math.ceil(self.count // self.num_replicas / self.batch))

    def __iter__(self) -> Iterator[list[int]]:
        rows = range(self.rank % self.count, self.count, self.num_replicas)
        ends = [*range(self.batch, len(self) * self.batch, self.batch), len(rows)]
        for begin, end in zip([0, *ends], ends):
            yield list(rows[begin:end])


class EpochLoader(DataLoader):
    """A loader that goes on inside an epoch. Lightning takes one with these two methods for such a one and does not
    warn; where it goes on is told to its `EpochOrder`."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def seed_all(seed: int) -> None:
    """Of Python, NumPy and torch on the CPU and on the GPU in use: augmentations and models draw from all of them.

    `torch.manual_seed` takes a millisecond where no GPU is in use yet, since it notes the seed for one.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def seed_of_step(*numbers: int) -> int:
    """A seed for what a model draws in one step: of the training's seed, the epoch, the batch and the device."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
