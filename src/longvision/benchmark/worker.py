"""One round of one case, in a process of its own: `python -m longvision.benchmark.worker` with a task on stdin.

The last line on stdout is the answer, a `Round` as JSON. Every case starts from the same state, its memory is its own,
and what it takes is given back when it ends.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

import torch

from longvision.benchmark.build import Step
from longvision.benchmark.case import OUT_OF_MEMORY, Case, Round, sentence
from longvision.benchmark.memory import limit_memory, measure_peak
from longvision.benchmark.timing import stopwatch, time_round
from longvision.errors import is_out_of_memory

TOO_LONG = 75  # the exit code of a process whose first call did not end in time


def main() -> None:
    task = json.load(sys.stdin)
    case, memory_limit = Case(**task.pop("case")), task.pop("memory_limit")
    if case.device == "cpu":
        limit_memory(memory_limit)
    print(json.dumps(asdict(run_round(case, **task))))


def run_round(
    case: Case,
    share: float,
    patience: float,
    measure_memory: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Round:
    """Build, warm up, time for `share` seconds, measure memory; a first call beyond `patience` ends the process."""
    threads = torch.get_num_threads()
    try:
        torch.manual_seed(0)
        step = Step(case)
        timed = stopwatch(step, case.device, clock)
        with after(patience, partial(os._exit, TOO_LONG)):  # an exception would wait for the call to come back
            first, peak = measure_peak(timed, case.device)
        done = time_round(timed, first, share)
        if measure_memory and not done.first_call:  # what the first call takes once and keeps is not its price
            step.clear()
            seconds, peak = measure_peak(timed, case.device)
            done = replace(done, spent=done.spent + seconds)
    except Exception as error:
        # A model may refuse a size with any error; the table says which.
        return Round(OUT_OF_MEMORY if is_out_of_memory(error) else f"refused: {sentence(error)}", threads=threads)
    return replace(done, peak_bytes=peak if measure_memory else None, attention=step.attention, threads=threads)


@contextmanager
def after(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """`act`, unless what is inside ends sooner."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


if __name__ == "__main__":
    main()
