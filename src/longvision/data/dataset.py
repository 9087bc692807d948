"""What a DataLoader reads: a set's images and labels, transformed. A few that cannot be read are named and skipped."""

import warnings
from typing import Any

import torch
from torch.utils.data import Dataset

from longvision.data.order import Draw, seed_all
from longvision.data.problems import NAMED, is_too_many
from longvision.data.sources.base import ImageSet
from longvision.data.transforms.base import Sample, Transforms
from longvision.errors import UnreadableImage, UserError


class TransformedSet(Dataset[Sample | None]):
    """One split of a set. An image that cannot be read is None, which `collate` drops.

    Which ones they are is marked in memory that the worker processes share, so that all of them count together.
    `where` is the split's name in messages; images are varied in `training`.
    """

    def __init__(self, images: ImageSet[Any], transforms: Transforms[Any], where: str, training: bool) -> None:
        self.images, self.transforms, self.where, self.training = images, transforms, where, training
        self.unreadable_N = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: int | Draw) -> Sample | None:
        """An image by its number; with a seed beside it, varied by what that draws."""
        index, seed = draw if isinstance(draw, tuple) else (draw, None)
        if seed is not None:
            seed_all(seed)
        try:
            image, label = self.images[index]
        except UnreadableImage as error:
            self._note(index, str(error))
            return None
        if self.training:
            return self.transforms.train(image, label, self.images)
        return self.transforms.evaluate(image, label)

    def collate(self, samples: list[Sample | None]) -> Any:
        """Samples -> a batch, without those that could not be read. Raises UserError where none is left."""
        read = [sample for sample in samples if sample is not None]
        if not read:
            raise UserError(
                f"none of the {len(samples)} images of a batch can be read: "
                "remove the files that the warnings name, or raise batch_size"
            )
        return self.transforms.collate(read)

    def _note(self, index: int, reason: str) -> None:
        if self.unreadable_N[index]:
            return
        self.unreadable_N[index] = True
        unreadable = self.unreadable_N.nonzero().flatten().tolist()
        if is_too_many(len(unreadable), len(self)):
            reasons = "; ".join(self._reason(i) for i in unreadable[:NAMED])
            raise UserError(
                f"{len(unreadable)} of {len(self)} images in {self.where} cannot be read, more than 1 %; "
                f"remove or replace them: {reasons}"
            )
        warnings.warn(f"{reason}; it is skipped, the {len(unreadable)}. of {len(self)} in {self.where}", stacklevel=3)

    def _reason(self, index: int) -> str:
        """Read it once more: another process may have met it."""
        try:
            self.images[index]
        except UnreadableImage as error:
            return str(error)
        return f"image {index}"
