"""How images are loaded: options of every source."""

from dataclasses import dataclass

from longvision.data.problems import TOLERATED
from longvision.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """In what batches images are loaded.

    Args:
        batch_size: training images a step.
        workers: processes that load images; 0 loads in the main one; at most 4, one a core, when left out.
        unreadable: the share of a split's images that may be unreadable: these are named, counted and skipped, and
            more of them stop the run.
        balance: of a classification, whether an epoch shows each class as often: images of small classes several times,
            of large ones some.
    """

    batch_size: int = 64
    workers: int | None = None
    unreadable: float = TOLERATED
    balance: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: expected at least 1 image a batch")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers {self.workers}: expected 0 (load in the main process) or more")
        if not 0 <= self.unreadable < 1:
            raise UserError(f"unreadable {self.unreadable}: expected a share of the images, 0 (none) or more, below 1")
