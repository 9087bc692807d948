"""Stops a training whose loss is no longer a number, without waiting for the device at every step."""

import math
from typing import Any

import torch
from torch import Tensor

from longvision.errors import DivergedError


class FiniteCheck:
    """Looks at each loss: at once on a CPU; on a GPU one step later, when its value has been copied meanwhile.

    `settle` looks at what is left, before anything is saved.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self._pending: tuple[Tensor, Any, int] | None = None

    def add(self, loss: Tensor, step: int) -> None:
        """Raises DivergedError, for this loss or the one before it."""
        self.settle()
        copied = loss.detach().to("cpu", non_blocking=True)
        self._pending = copied, _recorded(loss), step
        if self._pending[1] is None:
            self.settle()

    def settle(self) -> None:
        """Raises DivergedError if the last loss that was added is NaN or infinite."""
        if self._pending is None:
            return
        (value, copied, step), self._pending = self._pending, None
        if copied is not None:
            copied.synchronize()
        if not math.isfinite(value.item()):
            raise DivergedError(f"the loss became {value.item()} at step {step}: {self.advice}")


def _recorded(loss: Tensor) -> Any:
    """A point in the device's work that is reached when the loss has been copied; None on a CPU, which has no queue."""
    return torch.cuda.current_stream(loss.device).record_event() if loss.is_cuda else None
