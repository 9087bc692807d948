"""Files that turn out to be no images: a few are named and left out, many are a mistake to be told of."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from longvision.data.io.images import UnreadableImage
from longvision.data.sources.sets import ImageSet
from longvision.data.transforms.preprocess import Transform

TOLERATED = 0.01  # share of a set: beyond it, what is left is not the set that was meant
NAMED = 10

Sample = tuple[Tensor, int]


def report(bad: Sequence[str], total: int, where: str) -> None:
    """Warn of the files left out, or raise when they are more than 1 % of the set."""
    if not bad:
        return
    names = ", ".join(bad[:NAMED]) + (", …" if len(bad) > NAMED else "")
    found = f"{len(bad)} of {total} files in {where} are not images"
    if is_too_many(len(bad), total):
        raise ValueError(f"{found}, more than 1 %; remove or replace them: {names}")
    warnings.warn(f"{found} and are skipped: {names}", stacklevel=2)


def is_too_many(bad: int, total: int) -> bool:
    return bad > TOLERATED * total


class Prepared(Dataset[Sample | None]):
    """A set's images, transformed. One that breaks while it is read is None, for `collate` to drop.

    Which images are broken is marked in memory that the worker processes share, so that all of them count together.
    """

    def __init__(self, images: ImageSet, transform: Transform, where: str) -> None:
        self.images = images
        self.transform = transform
        self.where = where
        self.broken_M = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            image, label = self.images[index]
        except UnreadableImage as error:
            self._note(index, str(error))
            return None
        return self.transform(image), label

    def _note(self, index: int, reason: str) -> None:
        if self.broken_M[index]:
            return
        self.broken_M[index] = True
        broken = self.broken_M.nonzero().flatten().tolist()
        if is_too_many(len(broken), len(self)):
            reasons = "; ".join(self._reason(i) for i in broken[:NAMED])
            raise ValueError(
                f"{len(broken)} of {len(self)} images in {self.where} cannot be read, more than 1 %; "
                f"remove or replace them: {reasons}"
            )
        warnings.warn(f"{reason}; it is skipped, the {len(broken)}. of {len(self)} in {self.where}", stacklevel=3)

    def _reason(self, index: int) -> str:
        """Read it once more: another process may have met it."""
        try:
            self.images[index]
        except UnreadableImage as error:
            return str(error)
        return f"image {index}"


def collate(samples: list[Sample | None]) -> tuple[Tensor, Tensor]:
    """Samples -> images (B, C, H, W) float32 and labels (B,) int64, without those that could not be read."""
    read = [sample for sample in samples if sample is not None]
    if not read:
        raise ValueError(
            f"none of the {len(samples)} images of a batch can be read: "
            "remove the files that the warnings name, or raise batch_size"
        )
    images, labels = zip(*read, strict=True)
    return torch.stack(images), torch.tensor(labels)
