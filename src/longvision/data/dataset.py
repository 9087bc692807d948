"""What a DataLoader reads: a set's images and labels, transformed. A few that cannot be read are named and skipped."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from longvision.data.io.images import decoded_at_least
from longvision.data.order import Draw, seed_all
from longvision.data.problems import NAMED, TOLERATED, is_gone, is_too_many, too_many_unreadable, unreadable
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.base import Sample, Transforms
from longvision.errors import MissingFileError, UnreadableImage, UserError
from longvision.types import Size


class TransformedSet(Dataset[Any]):
    """One split of a set. An image that cannot be read is None, which `collate` drops.

    Which ones they are is marked in memory that the worker processes share, so that all of them count together.
    `where` is the split's name in messages; images are varied in `training`. A share of more than `tolerated` is an
    error, and so is one when `folder`, where the set was, is gone. Training images of other sizes than the transforms'
    own have the transforms `sizes`.
    """

    def __init__(
        self,
        images: ImageSet[Any],
        transforms: Any,
        where: str,
        training: bool,
        tolerated: float = TOLERATED,
        folder: str | None = None,
        sizes: Mapping[Size, Transforms[Any]] | None = None,
    ) -> None:
        self.images, self.transforms, self.where, self.training = images, transforms, where, training
        self.tolerated, self.folder, self.sizes = tolerated, folder, sizes or {}
        self.left_out = getattr(images, "left_out", 0)
        self.unreadable_N = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: int | Draw | list[Any]) -> Any:
        """An image by its number; with a seed beside it, varied by what that draws. Of a list of these, the batch."""
        if not isinstance(draw, list):
            return self._sample(draw)
        return self.collate([self._sample(one) for one in draw], draw[0].size if self.training else None)

    def _sample(self, draw: int | Draw) -> Sample | None:
        draw = Draw(*draw) if isinstance(draw, tuple) else Draw(draw)
        index, seed, size, _ = draw
        packed = size is not None and size not in self.sizes
        if seed is not None:
            seed_all(seed)
        try:
            with decoded_at_least(self.transforms.needed(size) if packed else None):
                image, label = self.images[index]
        except (UnreadableImage, MissingFileError) as error:  # it was there when it was listed
            self._note(index, str(error))
            return None
        if not self.training:
            return self.transforms.evaluate(image, label)
        if packed:
            return self.transforms.train_at(draw, image, label)
        return (self.transforms if size is None else self.sizes[size]).train(image, label, self.images)

    def collate(self, samples: list[Sample | None], size: Size | None = None) -> Any:
        """Samples, of that size in training -> a batch, without those that could not be read. In training one of two
        images or more keeps two, as batch norms need; where none is left in evaluation, it is two empty lists."""
        read = [sample for sample in samples if sample is not None]
        if self.training:
            while len(read) < min(2, len(samples)):
                read.append(self._another(size))
        return self.transforms.collate(read) if read else ([], [])

    def _another(self, size: Size | None) -> Sample:
        """Any image that can be read."""
        while True:  # some can be; else `_note` raises
            sample = self._sample(Draw(int(torch.randint(len(self), ())), size=size))
            if sample is not None:
                return sample

    def count_together(self, summed: Callable[[Tensor], Tensor]) -> None:
        """With those that other devices met: `summed` adds int32 (N,) over all of them. Raises UserError, on every
        device, where they are too many together."""
        self.unreadable_N |= summed(self.unreadable_N.int()).cpu() > 0
        self._check_count()

    @property
    def unreadable(self) -> str:
        """How many images cannot be read, as far as was seen, and which; nothing where all can be."""
        rows = self.unreadable_N.nonzero().flatten().tolist()
        if not rows and not self.left_out:
            return ""
        reasons = [self._reason(row) for row in rows[:NAMED]]
        reasons += [f"{self.left_out} named before"] * bool(self.left_out)
        return unreadable(reasons, len(rows) + self.left_out, len(self) + self.left_out, self.where)

    def _note(self, index: int, reason: str) -> None:
        if self.unreadable_N[index]:
            return
        if self.folder is not None and is_gone(self.folder):
            raise UserError(
                f"{self.folder} is gone, or empty: it held the images when they were listed; mount or restore it, then "
                f"go on with --resume ({reason})"
            )
        self.unreadable_N[index] = True
        count, total = self._check_count()
        warnings.warn(f"{reason}; it is skipped, the {count}. of {total} in {self.where}", stacklevel=3)

    def _check_count(self) -> tuple[int, int]:
        """How many cannot be read, of how many. Raises UserError where they are too many."""
        rows = self.unreadable_N.nonzero().flatten().tolist()
        count, total = len(rows) + self.left_out, len(self) + self.left_out
        if is_too_many(count, total, self.tolerated):
            reasons = [self._reason(row) for row in rows[:NAMED]]
            raise too_many_unreadable(reasons, count, total, self.where, self.tolerated)
        return count, total

    def _reason(self, index: int) -> str:
        """Read it once more: another process may have met it."""
        try:
            self.images[index]
        except (UnreadableImage, MissingFileError) as error:
            return str(error)
        return f"image {index}"
