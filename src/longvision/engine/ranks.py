"""Several processes of one run: work of the first alone, whose failure all the others hear of, and the end of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning import Trainer
from lightning.pytorch.strategies import Strategy

from longvision.errors import LostPeerError, UserError


def on_first_rank(strategy: Strategy, work: Callable[[], None]) -> None:
    """Run `work` in the first process, while the others wait for how it ends. Every process of a run calls it.

    Without the word they would go on to the next barrier and wait there for one that has failed.

    Raises:
        Exception: what `work` raised, in the first process.
        UserError, RuntimeError: the same in words, in the others; of the same class where it was a UserError.
    """
    failure: Exception | None = None
    if strategy.is_global_zero:
        try:
            work()
        except Exception as error:
            failure = error
    kind: type[Exception] = type(failure) if isinstance(failure, UserError) else RuntimeError
    said = None if failure is None else (kind, f"{type(failure).__name__}: {failure}")
    told: tuple[type[Exception], str] | None = strategy.broadcast(said)
    if failure is not None:
        raise failure
    if told is not None:
        kind, words = told
        raise kind(f"the first process failed: {words}")


@contextmanager
def lost_peers_named(trainer: Trainer) -> Iterator[None]:
    """Inside, what a backend raises where another process has ended or hangs is one sentence. Raises LostPeerError."""
    try:
        yield
    except RuntimeError as error:
        if trainer.world_size == 1:  # also of a torch without torch.distributed
            raise
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise LostPeerError(
            f"process {trainer.global_rank} of {trainer.world_size} has lost another one, which ended or no longer "
            "answers: see what that said, then go on with longvision train --resume RUN"
        ) from error
