"""How images are loaded: options of every source."""

from dataclasses import dataclass

from longvision.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """In what batches images are loaded.

    Args:
        batch_size: training images a step.
        workers: processes that load images; 0 loads in the main one; at most 4, one a core, when left out.
    """

    batch_size: int = 64
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: expected at least 1 image a batch")
        if self.workers is not None and self.workers < 0:
            raise UserError(f"workers {self.workers}: expected 0 (load in the main process) or more")
