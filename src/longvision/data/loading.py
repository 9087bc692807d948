"""How images are loaded: options of every source."""

from collections.abc import Sequence
from dataclasses import dataclass

from longvision.data.problems import TOLERATED
from longvision.errors import UserError
from longvision.types import Size


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """In what batches images are loaded.

    Args:
        batch_size: training images a step and device.
        total_batch: training images of a step of the optimizer, over all devices; what they do not take at once is
            accumulated, in batches of batch_size or less. Left out, it is what the batches are.
        workers: processes that load images; 0 loads in the main one; at most 4, one a core, when left out.
        unreadable: the share of a split's images that may be unreadable: these are named, counted and skipped, and
            more of them stop the run.
        balance: of a classification, whether an epoch shows each class as often: images of small classes several times,
            of large ones some.
        sizes: sides of square training images, each step of one of them: as many images as have the pixels of
            batch_size images of data.size. With pack, each image has the area of one of them. Evaluation is at
            data.size, and so is training without any.
    """

    batch_size: int = 64
    total_batch: int | None = None
    workers: int | None = None
    unreadable: float = TOLERATED
    balance: bool = False
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: expected at least 1 image a batch")
        if self.total_batch is not None and self.total_batch < 1:
            raise UserError(f"total_batch {self.total_batch}: expected at least 1 image a step")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers {self.workers}: expected 0 (load in the main process) or more")
        if not 0 <= self.unreadable < 1:
            raise UserError(f"unreadable {self.unreadable}: expected a share of the images, 0 (none) or more, below 1")
        object.__setattr__(self, "sizes", tuple(self.sizes))  # YAML has lists only
        if any(side < 1 for side in self.sizes) or len(set(self.sizes)) < len(self.sizes):
            raise UserError(f"sizes {list(self.sizes)}: expected sides in pixels, each once")


def images_of_sizes(size: Size, sides: Sequence[int], batch: int) -> list[int]:
    """How many square images of each side have the pixels of `batch` images of a height and width, or fewer. Raises
    UserError where one alone has more."""
    images = [batch * size[0] * size[1] // side**2 for side in sides]
    if 0 in images:
        raise UserError(
            f"sizes {list(sides)}: one image of {max(sides)}x{max(sides)} has more pixels than a batch of {batch} at "
            f"{size[0]}x{size[1]}: raise data.batch_size, or leave that size out"
        )
    return images
