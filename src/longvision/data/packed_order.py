"""The packs of an epoch: which images, at which size, with how many patches, follow from seed and epoch alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longvision.data.order import Draw, EpochOrder
from longvision.data.packing import PackingConfig, drawn_lengths, drawn_tokens, grids_of, packs_of

AGAIN = 1 << 40  # added to the seeds of an epoch's images that come again to fill its steps


class PackedOrder(EpochOrder):
    """One device's share of an epoch, in packs; of device r of R packs r, r + R, r + 2R, ….

    Every epoch has as many packs as the first one has whole, since a training counts its steps before it begins; where
    the sizes that are drawn make fewer, the first ones come again, varied otherwise. `begin` and `after` count packs.

    Args:
        shapes_N2: height and width of each image.
        sides: of squares whose area an image may be given.
        patch: side of a patch, pixels.
        config: how they are packed.
        others: of `EpochOrder`.
    """

    def __init__(
        self,
        *others: Any,
        shapes_N2: np.ndarray,
        sides: Sequence[int],
        patch: int,
        config: PackingConfig,
        **options: Any,
    ) -> None:
        super().__init__(*others, **options)
        self.shapes_N2, self.sides, self.patch, self.config = shapes_N2, tuple(sides), patch, config
        whole = len(self._plan(0)) - 1  # the last one is not full
        self.packs = max(1, whole // self.num_replicas) * self.num_replicas  # of every epoch, all devices together

    def __len__(self) -> int:
        """Packs of a device in a whole epoch, also in one that goes on."""
        return self.packs // self.num_replicas

    def steps(self, begin: int = 0) -> int:
        return max(0, self.packs - begin) // self.num_replicas

    def after(self, steps: int) -> int:
        return min(self.begin + steps * self.num_replicas, self.packs)

    def __iter__(self) -> Iterator[list[Draw]]:  # type: ignore[override]
        plan = self._plan(self.epoch)
        for step in range(self.steps(self.begin)):
            number = self.begin + self.rank + step * self.num_replicas
            again, number = divmod(number, len(plan))
            yield plan.pack(number, again * AGAIN)

    def _plan(self, epoch: int) -> "Plan":
        draw = np.random.default_rng([self.seed, epoch, self.config.tokens])
        rows_N, seeds_N = self.drawn(epoch)
        grids_N2 = grids_of(self.shapes_N2[rows_N], drawn_tokens(self.config, self.sides, self.patch, self.count, draw))
        least, most = ((side // self.patch) ** 2 for side in (min(self.sides), max(self.sides)))
        lengths_N = drawn_lengths(self.config, grids_N2.prod(1), (least, most), draw)
        ends = [0]

        def places() -> Iterator[int]:
            for pack in packs_of(map(int, lengths_N), self.config.tokens):
                ends.append(ends[-1] + len(pack))
                yield from pack

        places_N = np.fromiter(places(), np.int64, self.count)
        sizes_N2 = (grids_N2 * self.patch).astype(np.int32)
        return Plan(rows_N[places_N], seeds_N[places_N], sizes_N2[places_N], lengths_N[places_N], np.array(ends))


@dataclass(frozen=True)
class Plan:
    """Of an epoch the images of all packs, one behind the other, as arrays: millions of objects would take ten times as
    much memory.

    Args:
        rows_N: their numbers.
        seeds_N: of their augmentation.
        sizes_N2: heights and widths, pixels.
        lengths_N: patches that are shown.
        ends_K: before which a pack ends, and before it 0 (K + 1,).
    """

    rows_N: np.ndarray
    seeds_N: np.ndarray
    sizes_N2: np.ndarray
    lengths_N: np.ndarray
    ends_K: np.ndarray

    def __len__(self) -> int:
        return len(self.ends_K) - 1

    def pack(self, number: int, more: int) -> list[Draw]:
        """With `more` added to the seeds."""
        part = slice(*self.ends_K[number : number + 2])
        columns = (self.rows_N, self.seeds_N, self.sizes_N2, self.lengths_N)
        images = zip(*(x_N[part].tolist() for x_N in columns), strict=True)
        return [Draw(row, seed + more, tuple(size), length) for row, seed, size, length in images]
