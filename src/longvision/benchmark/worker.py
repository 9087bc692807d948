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
from dataclasses import asdict
from functools import partial

import torch

from longvision.benchmark.build import Step
from longvision.benchmark.case import OUT_OF_MEMORY, Case, Round, sentence
from longvision.benchmark.memory import is_out_of_memory, limit_memory, measure_peak
from longvision.benchmark.timing import time_round

TOO_LONG = 75  # the exit code of a process whose first call did not end in time


def main() -> None:
    task = json.load(sys.stdin)
    case = Case(**task["case"])
    if case.device == "cpu":
        limit_memory(task["memory_limit"])
    done = run_round(case, task["share"], task["patience"], task["measure_memory"])
    print(json.dumps(asdict(done)))


def run_round(case: Case, share: float, patience: float, measure_memory: bool) -> Round:
    """Build, warm up, time for `share` seconds, measure memory; end the process if a call exceeds `patience`."""
    threads = torch.get_num_threads()
    try:
        torch.manual_seed(0)
        step = Step(case)
        with after(patience, partial(os._exit, TOO_LONG)):  # an exception would wait for the call to come back
            first, peak = measure_peak(lambda: _timed(step), case.device)
        timing = time_round(lambda: _timed(step), first, share)
        spent = timing.spent
        if measure_memory and not timing.first_call:  # what the first call takes once and keeps is not its price
            step.clear()
            seconds, peak = measure_peak(lambda: _timed(step), case.device)
            spent += seconds
    except Exception as error:
        # A model may refuse a size with any error; the table says which.
        return Round(OUT_OF_MEMORY if is_out_of_memory(error) else f"refused: {sentence(error)}", threads=threads)
    return Round(
        seconds=timing.seconds,
        first_call=timing.first_call,
        spent=spent,
        peak_bytes=peak if measure_memory else None,
        attention=step.attention,
        threads=threads,
    )


def _timed(step: Step) -> float:
    start = time.perf_counter()
    step()
    if step.case.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


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
