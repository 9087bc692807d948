"""How many tokens an image may have, so that a model takes no longer than a given time."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longvision.errors import UserError

CALLS = 5


def most_tokens(budget_ms: float, most_side: int, measure: Callable[[int], float]) -> tuple[int, float]:
    """The most tokens, a square, that take no longer than `budget_ms`, and the milliseconds that they take.

    Args:
        most_side: of the largest square that is tried, patches.
        measure: the side of a square of patches -> milliseconds; more patches take longer.

    Raises:
        UserError: not even one patch is quick enough.
    """
    if (taken := measure(1)) > budget_ms:
        raise UserError(f"budget {budget_ms:g} ms: an image of one patch takes {taken:.3g} ms: give more time")
    low, high = 1, most_side + 1  # the one is quick enough, the other is not, or not wanted
    while high - low > 1:
        side = min(2 * low, (low + high) // 2)  # from below: what takes far too long is not tried
        if (milliseconds := measure(side)) <= budget_ms:
            low, taken = side, milliseconds
        else:
            high = side
    return low**2, taken


@torch.inference_mode()
def milliseconds_of(model: Any, image_1CHW: Tensor, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of the model on one image: the median of some calls, behind one that does not count."""
    times = []
    for _ in range(1 + CALLS):
        start = clock()
        model(image_1CHW)
        if image_1CHW.is_cuda:
            torch.cuda.synchronize()
        times.append(1000 * (clock() - start))
    return statistics.median(times[1:])
