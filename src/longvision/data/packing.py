"""Which images go into one sequence of patches, at what size and with how many of their patches: numbers alone, after
NaViT's Patch n' Pack (arXiv 2307.06304). Loads no torch."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Literal

import numpy as np

from longvision.errors import UserError
from longvision.types import Size

AHEAD = 256  # images among which one is looked for that fills a pack
MOST_DROPPED = 0.95
BETA = 10.0  # the two parameters' sum: rates of a mean of 0.5 deviate by 0.15 from it


@dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How the images of a classification are packed, several in one sequence of patches.

    Args:
        pack: whether they are: each keeps its proportions, and batch_size does not count.
        tokens: patches in a pack, the images of a step and device, in evaluation too; class tokens come on top.
        patch: side of a model's patches, pixels; the model's own when left out.
        sizes_by: how an image's size is drawn, whose area is that of a square: "list", one of sizes; "uniform", a side
            between the least and the largest of them; "normal", the same, small ones more often.
        drop: the share of an image's patches that training leaves out, on average.
        drop_by: "fixed", the same of every image; "beta", drawn for each; "resolution", rising with its patches from 0
            to twice that.
    """

    pack: bool = False
    tokens: int = 4096
    patch: int | None = None
    sizes_by: Literal["list", "uniform", "normal"] = "list"
    drop: float = 0.0
    drop_by: Literal["fixed", "beta", "resolution"] = "fixed"

    def check(self, size: Size, sizes: tuple[int, ...]) -> None:
        """Raises UserError for what does not go together; what depends on the patch, where it is known."""
        if not self.pack:
            self._refuse_options_of_packs()
            return
        if not 0 <= self.drop <= (0.5 if self.drop_by == "resolution" else MOST_DROPPED):
            raise UserError(f"drop {self.drop}: expected a share from 0 to {MOST_DROPPED}, or to 0.5 by resolution")
        if size[0] != size[1]:
            raise UserError(f"size {list(size)}: packed images have their own proportions, give one number")
        if len(sizes) < 2 and (self.sizes_by != "list" or (self.drop and self.drop_by == "resolution")):
            raise UserError("sizes_by uniform or normal and drop_by resolution need two sizes or more, as [128, 256]")
        if self.patch is not None:
            self.check_patch(self.patch, (size[0], *sizes))

    def _refuse_options_of_packs(self) -> None:
        given = {each.name: each.default for each in fields(PackingConfig) if getattr(self, each.name) != each.default}
        if given:
            values = ", ".join(f"data.{name} {getattr(self, name)}" for name in given)
            unset = ", ".join("null" if value is None else str(value) for value in given.values())
            raise UserError(f"{values}: this is for packed images: set data.pack true, or leave it at {unset}")

    def check_model(self, patch: int, stride: int, sides: Iterable[int]) -> None:
        """Raises UserError for a model whose patches, of that side and distance, do not go with these options."""
        if stride != patch:
            raise UserError(
                f"data.pack true: the model's patches of {patch} overlap, at a stride of {stride}: choose one whose "
                "patches do not"
            )
        if self.patch not in (None, patch):
            raise UserError(f"data.patch {self.patch}: the model has patches of {patch}: give that, or leave it out")
        self.check_patch(patch, sides)

    def check_patch(self, patch: int, sides: Iterable[int]) -> None:
        """Raises UserError for a side that does not divide into patches, or of which no image fits into a pack."""
        for side in sides:
            if side < patch or side % patch:
                raise UserError(f"size {side} does not divide into patches of {patch}: choose a multiple")
            if (side // patch) ** 2 > self.tokens:
                raise UserError(
                    f"tokens {self.tokens}: an image of {side}x{side} has {(side // patch) ** 2} patches of {patch}, "
                    "which is above that: raise it, or lower the size"
                )

    def evaluated_together(self, patches: int) -> int:
        """Images of at most so many patches that surely fit into a pack."""
        return max(1, self.tokens // patches)


def check_trainer(packs: bool, sizes: Sequence[int], trainer: Any) -> None:
    """Raises UserError for options of a trainer, or of a command, that do not go with packs or steps of sizes."""
    if trainer.overfit_batches and (packs or sizes):
        raise UserError("--trainer.overfit_batches keeps to batches of one size: leave data.sizes and data.pack out")
    if (packs or sizes) and trainer.accumulate_grad_batches > 1:  # they would weigh alike, whatever is in them
        what, other = ("packs", "data.tokens") if packs else ("batches of several sizes", "data.batch_size")
        raise UserError(
            f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: {what} are not accumulated, as each "
            f"has another number of images: raise --{other} instead, or leave data.pack and data.sizes out"
        )


def grids_of(shapes_N2: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
    """Rows and columns of patches (N, 2) of images of these heights and widths: at most `tokens_N` patches each, in the
    image's proportions as nearly as whole patches have them; of an image turned by 90 degrees, the same turned."""
    ratio_N = shapes_N2.max(1) / shapes_N2.min(1)
    short_N = np.clip(np.rint(np.sqrt(tokens_N / ratio_N)), 1, tokens_N)
    long_N = np.clip(np.rint(short_N * ratio_N), 1, tokens_N // short_N)
    tall_N = shapes_N2[:, 0] > shapes_N2[:, 1]
    grids_N2 = np.where(tall_N[:, None], np.stack([long_N, short_N], 1), np.stack([short_N, long_N], 1))
    return grids_N2.astype(np.int64)


def drawn_tokens(
    config: PackingConfig, sides: tuple[int, ...], patch: int, count: int, draw: np.random.Generator
) -> np.ndarray:
    """Patches that each of `count` images may have, int64 (N,)."""
    if config.sizes_by == "list":
        side_N = np.array(sides)[draw.integers(len(sides), size=count)]
    else:
        share_N = draw.random(count) if config.sizes_by == "uniform" else _low_shares(count, draw)
        side_N = min(sides) + (max(sides) - min(sides)) * share_N
    return np.maximum((side_N / patch) ** 2, 1).astype(np.int64)


def _low_shares(count: int, draw: np.random.Generator) -> np.ndarray:
    """(N,) from 0 to 1: a normal distribution of mean -0.5 and deviation 1, cut at -1 and 1, NaViT's, brought there."""
    kept = np.empty(0)
    while len(kept) < count:
        values = draw.normal(-0.5, 1.0, 2 * count)
        kept = np.concatenate([kept, values[np.abs(values) <= 1]])
    return (kept[:count] + 1) / 2


def drawn_lengths(
    config: PackingConfig, patches_N: np.ndarray, ends: tuple[int, int], draw: np.random.Generator
) -> np.ndarray:
    """How many patches are left of each image's `patches_N`, int64 (N,), at least 1.

    `ends`: the patches of the smallest and the largest image there may be.
    """
    if config.drop_by == "beta" and config.drop:
        rate_N = draw.beta(BETA * config.drop, BETA * (1 - config.drop), len(patches_N))
    elif config.drop_by == "resolution" and config.drop:
        rate_N = 2 * config.drop * (patches_N - ends[0]) / (ends[1] - ends[0])
    else:
        rate_N = np.full(len(patches_N), config.drop)
    left_N = np.rint(patches_N * (1 - np.clip(rate_N, 0, MOST_DROPPED)))
    return np.maximum(left_N, 1).astype(np.int64)


def packs_of(lengths: Iterable[int], budget: int, ahead: int = AHEAD) -> Iterator[list[int]]:
    """Places of the lengths, in packs of at most `budget` together: each once, none larger than it.

    Images go in as they come while any that waits would fit; what is left is filled by the largest of the `ahead` next
    ones that fit. So it needs to know no more of them, and an image does not wait for long.
    """
    coming = enumerate(lengths)
    waiting: dict[int, int] = {}  # place -> length, the oldest first
    by_length: list[tuple[int, int]] = []
    pack: list[int] = []
    room = budget
    while True:
        for place, length in islice(coming, ahead - len(waiting)):
            waiting[place] = length
            insort(by_length, (length, place))
        if by_length and by_length[-1][0] <= room:
            place = next(iter(waiting))
        else:
            at = bisect_left(by_length, (room + 1,)) - 1
            if at < 0:
                if pack:
                    yield pack
                if not waiting:
                    return
                pack, room = [], budget
                continue
            place = by_length[at][1]
        length = waiting.pop(place)
        del by_length[bisect_left(by_length, (length, place))]
        pack.append(place)
        room -= length
