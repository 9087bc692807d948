"""Seconds of calls on a GPU: CUDA events around replays of a CUDA graph."""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from longvision.benchmark.case import quantile, sentence, significant
from longvision.benchmark.memory import is_out_of_memory
from longvision.benchmark.timing import time_round

SHARE = 1.0  # seconds for the samples of one measurement


def time_calls(calls: Sequence[Callable[[], Any]], device: str) -> dict[str, Any]:
    """Microseconds a call, from replays of a graph of all of them."""
    run_all, note = captured(calls) if device == "cuda" else (functools.partial(each, calls), "")
    sample = functools.partial(stopwatch(device), run_all)
    timing = time_round(sample, sample(), SHARE)
    shares = {"median_us": 0.5, "q1_us": 0.25, "q3_us": 0.75}
    times = {name: significant(1e6 * quantile(timing.seconds, at) / len(calls)) for name, at in shares.items()}
    return {**times, "status": "ok" + note}


def each(calls: Iterable[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def captured(calls: Sequence[Callable[[], Any]]) -> tuple[Callable[[], None], str]:
    """-> what runs them all, and a note where that is no graph."""
    side = torch.cuda.Stream()  # compiles and tunes, as torch.cuda.graph wants it, away from the default stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        each([calls[0]] * 3)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            each(calls)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        torch.cuda.synchronize()
        return functools.partial(each, calls), f", without a graph: {sentence(error)}"
    return graph.replay, ""


def stopwatch(device: str) -> Callable[[Callable[[], None]], float]:
    return device_seconds if device == "cuda" else host_seconds


def device_seconds(call: Callable[[], None]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def host_seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
