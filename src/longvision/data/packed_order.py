"""The packs of an epoch: which images, at which size, with how many patches, follow from seed and epoch alone."""

from collections.abc import Iterator, Sequence
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
        self._planned: tuple[int, list[list[Draw]]] | None = None
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
            yield [draw._replace(seed=draw.seed + again * AGAIN) for draw in plan[number]]  # type: ignore[operator]

    def _plan(self, epoch: int) -> list[list[Draw]]:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._packed(epoch)
        return self._planned[1]

    def _packed(self, epoch: int) -> list[list[Draw]]:
        draw = np.random.default_rng([self.seed, epoch, self.config.tokens])
        rows_N, seeds_N = self.drawn(epoch)
        grids_N2 = grids_of(self.shapes_N2[rows_N], drawn_tokens(self.config, self.sides, self.patch, self.count, draw))
        least, most = ((side // self.patch) ** 2 for side in (min(self.sides), max(self.sides)))
        lengths = drawn_lengths(self.config, grids_N2.prod(1), (least, most), draw).tolist()
        sizes, rows, seeds = (grids_N2 * self.patch).tolist(), rows_N.tolist(), seeds_N.tolist()
        return [
            [Draw(rows[at], seeds[at], tuple(sizes[at]), lengths[at]) for at in pack]
            for pack in packs_of(lengths, self.config.tokens)
        ]
