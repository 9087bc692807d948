"""Several processes of one run: work of the first alone, whose failure all the others hear of, and the end of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from lightning import Trainer

from longvision.errors import LostPeerError, UserError


def on_first_rank(trainer: Trainer, work: Callable[[], None]) -> None:
    """Run `work` in the first process, while the others wait for how it ends. Every process of a run calls it.

    Without the word they would go on to the next barrier and wait there for one that has failed.

    Raises:
        Exception: what `work` raised, in the first process.
        UserError, RuntimeError: the same in words, in the others; UserError where it was one.
    """
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            work()
        except Exception as error:
            failure = error
    said = None if failure is None else (isinstance(failure, UserError), f"{type(failure).__name__}: {failure}")
    told: tuple[bool, str] | None = trainer.strategy.broadcast(said)
    if failure is not None:
        raise failure
    if told is not None:
        users, words = told
        raise (UserError if users else RuntimeError)(f"the first process failed: {words}")


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
