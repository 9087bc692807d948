"""Training steps of different image sizes (MobileViT's multi-scale sampler, arXiv 2110.02178): a small size has more
images, so that a step costs as much as any other."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from longvision.data.loading import images_of_sizes
from longvision.data.order import Draw, EpochOrder
from longvision.types import Size


class MultiScaleOrder(EpochOrder):
    """One device's share of an epoch, in batches of a size each: the same one on every device at a step.

    Every size has as many steps in an epoch, give or take one, in an order that follows from seed and epoch; so every
    epoch has as many steps. The images that are not enough for another one are left out of it.

    Args:
        size: height and width at which a step has `batch` images a device.
        sides: of the square images; a step of one has as many pixels, or a few less.
        others: of `EpochOrder`.

    Raises:
        UserError: a side of which not even one image has as few pixels.
    """

    def __init__(self, *others: Any, size: Size, sides: Sequence[int], batch: int, **options: Any) -> None:
        super().__init__(*others, batch=batch, **options)
        self.sides = sides
        most = max(1, self.count // self.num_replicas)
        images = [min(images_, most) for images_ in images_of_sizes(size, sides, batch)]
        self.images_S = self.num_replicas * np.array(images)  # of a step, all devices together
        rounds, rest = divmod(self.count, int(self.images_S.sum()))
        further = int((self.images_S.cumsum() <= rest).sum())
        # of each step of an epoch the place of its size among the sides, before they are shuffled
        self.size_K = np.arange(max(1, rounds * len(sides) + further)) % len(sides)

    def __len__(self) -> int:
        """Steps of a whole epoch, also of one that goes on."""
        return len(self.size_K)

    def _plan(self) -> tuple[np.ndarray, np.ndarray]:
        """The size of each step of the epoch (K,), and how many images come before it; before the end, too (K + 1,)."""
        size_K = np.random.default_rng([self.seed, self.epoch, len(self.sides)]).permutation(self.size_K)
        return size_K, np.concatenate([[0], self.images_S[size_K].cumsum()])

    def _done(self, begin: int) -> int:
        """The first step for which the images behind the first `begin` suffice, and for all behind it: where they were
        shown in steps of this size, the next one."""
        return min(int(np.searchsorted(self._plan()[1], begin)), len(self))

    def steps(self, begin: int = 0) -> int:
        return len(self) - self._done(begin)

    def after(self, steps: int) -> int:
        done, shown_K = self._done(self.begin), self._plan()[1]
        return self.begin + int(shown_K[min(done + steps, len(self))] - shown_K[done])

    def __iter__(self) -> Iterator[list[Draw]]:  # type: ignore[override]
        rows_N, seeds_N = self.drawn(self.epoch)
        size_K, _ = self._plan()
        place = self.begin
        for number in size_K[self._done(self.begin) :].tolist():
            end, side = place + int(self.images_S[number]), self.sides[number]
            mine = [at % self.count for at in range(place + self.rank, end, self.num_replicas)]  # fewer than devices
            yield [Draw(int(rows_N[at]), int(seeds_N[at]), (side, side)) for at in mine]
            place = end
