"""What every model that finds objects is called with, and what it answers."""

from typing import Any

import torch
from torch import Tensor, nn

from longvision.types import Detections, Size, Target

SURE = 0.05  # least score of an object that counts where it is asked whether there may be more


class ObjectModel(nn.Module):
    """Finds objects in normalised images (C, H, W) of any sizes. A subclass defines `losses`, `found` and `most`."""

    @property
    def most(self) -> int:
        """How many objects it can find in an image."""
        raise NotImplementedError

    @property
    def least_score(self) -> float:
        """Objects that score less are dropped."""
        return 0.0

    def is_full(self, found: Detections) -> bool:
        """Whether it found as many as it can, so that there may be more. Queries that found nothing do not count."""
        return int((found.scores >= SURE).sum()) >= self.most

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> Any:
        """Images (C, H, W) of any sizes -> losses by name in training, else what `detect` finds at those sizes.

        Targets refer to pixels of the image beside them. Crowds are left out: each of them stands for many objects.

        Raises:
            ValueError: training without targets.
        """
        if not self.training:
            return self.detect(images, [(image.shape[-2], image.shape[-1]) for image in images])
        if targets is None:
            raise ValueError("a detector in training needs targets: pass them, or call eval() first")
        return self.losses(images, targets)

    @torch.no_grad()
    def detect(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        """Images (C, H, W) -> the objects found in each, the highest score first, masks where they are learned.

        Args:
            images: normalised, of any sizes.
            sizes: (height, width) to whose pixels boxes and masks shall refer: of each image before it was resized.

        Raises:
            ValueError: in training mode.
        """
        if self.training:
            raise ValueError("a detector in training gives losses only: call eval() first")
        return self.found(images, sizes)

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def found(self, images: list[Tensor], sizes: list[Size]) -> list[Detections]:
        raise NotImplementedError
