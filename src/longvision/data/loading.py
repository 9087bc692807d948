"""How images are loaded: options of every source."""

from dataclasses import dataclass

from longvision.data.problems import TOLERATED
from longvision.errors import UserError


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
    """

    batch_size: int = 64
    total_batch: int | None = None
    workers: int | None = None
    unreadable: float = TOLERATED
    balance: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: expected at least 1 image a batch")
        if self.total_batch is not None and self.total_batch < 1:
            raise UserError(f"total_batch {self.total_batch}: expected at least 1 image a step")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers {self.workers}: expected 0 (load in the main process) or more")
        if not 0 <= self.unreadable < 1:
            raise UserError(f"unreadable {self.unreadable}: expected a share of the images, 0 (none) or more, below 1")
