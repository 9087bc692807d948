"""In which order an epoch shows its images, and with which random numbers each is varied: told by seed and epoch alone.

So an epoch that was interrupted goes on as if it had not been, and worker processes and devices change nothing.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

Draw = tuple[int, int]  # the number of an image, and the seed of its augmentation


class EpochOrder(DistributedSampler[Draw]):
    """One device's share of the images in the order of an epoch.

    Of the whole order, device r of R takes places r, r + R, r + 2R, …: what all of them have read so far is always its
    beginning. The few images that do not divide among the devices are left out of that epoch.

    Args:
        count: images in all.
        seed: of the whole training.
        devices: how many share an epoch.
        rank: which of them this is.
    """

    def __init__(self, count: int, seed: int, devices: int = 1, rank: int = 0) -> None:
        super().__init__(range(count), devices, rank, seed=seed)  # type: ignore[arg-type]
        self.count, self.begin = count, 0

    def set_epoch(self, epoch: int, begin: int | None = None) -> None:
        """The epoch that is read next, without its first `begin` images. Lightning calls this before each epoch."""
        if begin is None:
            begin = self.begin if epoch == self.epoch else 0
        self.epoch, self.begin = epoch, begin

    def share(self, begin: int = 0) -> int:
        """How many images a device reads of those after the first `begin`."""
        left = self.count - begin
        return max(left // self.num_replicas, min(1, left))

    def __len__(self) -> int:
        """Of a whole epoch, also of one that goes on."""
        return self.share()

    def __iter__(self) -> Iterator[Draw]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order, seeds = draw.permutation(self.count), draw.integers(2**63, size=self.count)
        rest = order[self.begin :]
        for place in range(self.share(self.begin)):
            row = int(rest[(self.rank + place * self.num_replicas) % len(rest)])
            yield row, int(seeds[row])


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
