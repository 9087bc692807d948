"""How often a call is timed: a share of the time budget, some warm-up first."""

from collections.abc import Callable
from typing import NamedTuple

WARM_UPS = 3
MOST_SAMPLES = 20


class Timing(NamedTuple):
    """The samples of one round; `spent` holds the warm-up too."""

    seconds: list[float]
    first_call: bool
    spent: float


def time_round(timed: Callable[[], float], first: float, share: float) -> Timing:
    """Sample `timed`, which makes a call and says how long it took, for `share` seconds; `first` was the first call.

    A first call that alone takes the whole share is the sample: to throw it away would double the cost of the
    slowest cases, in which a warm-up matters least.
    """
    if first > share:
        return Timing([first], True, first)
    spent = first
    for _ in range(WARM_UPS - 1):
        if spent > share / 10:
            break
        spent += timed()
    seconds: list[float] = []
    while not seconds or (len(seconds) < MOST_SAMPLES and spent < share):
        seconds.append(timed())
        spent += seconds[-1]
    return Timing(seconds, False, spent)
