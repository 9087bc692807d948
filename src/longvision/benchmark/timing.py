"""How a call is timed, how often, and whose turn it is."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from longvision.benchmark.case import OK, Result, Round, quantile

WARM_UPS = 3
MOST_SAMPLES = 20


def stopwatch(
    call: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> Callable[[], float]:
    """-> what makes a call and returns its seconds."""

    def timed() -> float:
        start = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    return timed


def time_round(timed: Callable[[], float], first: float, share: float) -> Round:
    """Sample `timed` for `share` seconds; `first` is what the first call took.

    A first call that alone takes the whole share is the sample: to throw it away would double the cost of the
    slowest cases, in which a warm-up matters least.
    """
    if first > share:
        return Round(seconds=[first], first_call=True, spent=first)
    spent = first
    for _ in range(WARM_UPS - 1):
        if spent > share / 10:
            break
        spent += timed()
    seconds: list[float] = []
    while not seconds or (len(seconds) < MOST_SAMPLES and spent < share):
        seconds.append(timed())
        spent += seconds[-1]
    return Round(seconds=seconds, spent=spent)


def take_turns(
    results: Sequence[Result], rounds: int, budget: float, measure: Callable[[Result, float], Round]
) -> Iterator[str]:
    """Rounds through all cases, so that a disturbance of minutes falls on all of them; yields the news.

    `measure` gets a case and its share of the budget, in seconds. One that failed or used its budget up is left.
    """
    for number in range(rounds):
        for result in results:
            if result.status != OK or result.spent >= budget:
                continue
            done = measure(result, (budget - result.spent) / (rounds - number))
            result.add(done)
            news = f"{1e3 * quantile(done.seconds, 0.5):.4g} ms" if done.seconds else done.status
            yield f"{result.case.label}  round {number + 1} of {rounds}: {news}"
