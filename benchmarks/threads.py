"""How long threads of a machine with many cores would wait for each other: benchmarks/results/threads.csv.

By the task graph: the tasks of a block of Vim-Ti run one after the other, each is timed, and given to the thread that
would be free first. What cores share, memory and caches, is left out. Run: python benchmarks/threads.py
"""

import csv
import ctypes
import statistics
from itertools import product
from pathlib import Path

import torch

from longvision.benchmark.provenance import device_name, provenance
from longvision.layers import VimBlock
from longvision.ops.kernels.cpp import library
from longvision.ops.kernels.cpp.compiler import compiled, find_compiler

ROOT = Path(__file__).parent.parent
THREADS, BATCHES, TOKENS = (8, 32, 96), (1, 8), (197, 1025)
REPEATS = 7


def main() -> None:
    path = compiled((f'SIMULATED_THREADS="{Path(__file__).with_name("simulated_threads.h")}"',), find_compiler())
    simulated = ctypes.CDLL(str(path))
    library._candidates[torch.float32] = library.Library(torch.float32, path)  # what the ops take from now on
    origin = {"device": f"simulated threads, {device_name('cpu')}", **provenance()}
    rows = []
    for mode, tokens, batch, threads in product(("infer", "train"), TOKENS, BATCHES, THREADS):
        times = [measure(simulated, mode, batch, tokens, threads) for _ in range(REPEATS)]
        case = {"mode": mode, "tokens": tokens, "batch": batch, "threads": threads}
        rows.append({**case, "idle_percent": round(100 * statistics.median(times), 1), **origin})
        print(f"{mode}, {tokens} tokens, batch {batch}, {threads} threads: {rows[-1]['idle_percent']} % idle")
    with (ROOT / "benchmarks/results/threads.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def measure(simulated: ctypes.CDLL, mode: str, batch: int, tokens: int, threads: int) -> float:
    """-> the share of the threads' time in which they wait."""
    torch.set_num_threads(threads)
    block, x = VimBlock(192), torch.randn(batch, tokens, 192)
    busy, span = ctypes.c_double(), ctypes.c_double()
    with torch.set_grad_enabled(mode == "train"):
        y = block(x)
        simulated.take_times(ctypes.byref(busy), ctypes.byref(span))
        y = block(x)
        if mode == "train":
            y.sum().backward()
    simulated.take_times(ctypes.byref(busy), ctypes.byref(span))
    return 1 - busy.value / (threads * span.value)


if __name__ == "__main__":
    main()
