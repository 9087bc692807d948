"""Work of the first process alone, whose failure all the others hear of."""

from collections.abc import Callable

from lightning import Trainer

from longvision.errors import UserError


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
