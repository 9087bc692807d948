"""What longvision's blocks and models cost on an NVIDIA GPU, beside their peers: benchmarks/results/gpu.csv.

Tests and a memory check first, then times, memory, precision; at the end a table, and what became of each target.
Times are CUDA events around replays of a CUDA graph, the median and quartiles of up to 20. A block is called on several
inputs in turn, together larger than the L2 cache; a model's own activations are. A block's forward has its weights in
bfloat16 and the residual in float32; what is trained has its weights in float32, under bfloat16 autocast.

Run: python benchmarks/gpu.py [--out DIR] [--budget SECONDS] [--peers DIR] [--commit NAME]; DIR of --peers holds the
sources of mamba-ssm and causal-conv1d (see gpu_peers.py). A row is written after every measurement. What breaks the
device's context is ended with its process, and the next measurement gets a new one.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_building import building, find_kernels
from gpu_checks import run_sanitizer, run_tests
from gpu_measure import (
    measure_block,
    measure_copy,
    measure_error,
    measure_memory,
    measure_model,
    measure_product,
    run_twice,
)
from gpu_processes import Job, supervise, work
from gpu_rows import DEIT, VIM, WIDTHS, Table, origin
from gpu_targets import summary
from torch.nn.attention import SDPBackend

from longvision.benchmark.case import Case

ROOT = Path(__file__).resolve().parent.parent
SDPA: dict[str, list[SDPBackend]] = {"default": [], "cudnn": [SDPBackend.CUDNN_ATTENTION]}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py measures an NVIDIA GPU, and torch sees no CUDA device here.", file=sys.stderr)
        return 1
    jobs, table = list_jobs(options), Table(options.out / "gpu.csv", origin(options.commit))
    if options.jobs is not None:
        return work([(number, jobs[number]) for number in options.jobs], table, options.until)
    table.start()
    with building(options.peers):
        supervise(jobs, worker_command(options), table, options.until)
    print(summary(table.rows))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder of gpu.csv")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds; what is left over then is skipped")
    parser.add_argument("--peers", type=Path, help="folder with the sources of mamba-ssm and causal-conv1d")
    parser.add_argument("--commit", default="", help="where git does not know it")
    parser.add_argument("--jobs", type=lambda text: [int(number) for number in text.split(",")], help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.until = options.until or time.time() + options.budget
    return options


def worker_command(options: argparse.Namespace) -> list[str]:
    """Without the numbers of its jobs, which come last."""
    words = ["--out", str(options.out), "--until", str(options.until), "--commit", options.commit]
    peer_words = [] if options.peers is None else ["--peers", str(options.peers)]
    return [sys.executable, str(Path(__file__).resolve()), *words, *peer_words, "--jobs"]


# What is measured


def list_jobs(options: argparse.Namespace) -> list[Job]:
    """By importance, but what tells whether the rest can be believed first."""
    return [
        Job({"what": "tests", "model": "pytest -m gpu tests/ops"}, run_tests),
        Job({"what": "sanitizer", "model": "block", "mode": "train"}, run_sanitizer),
        Job({"what": "ceiling", "model": "copy on the device", "dtype": "bfloat16"}, measure_copy),
        Job({"what": "ceiling", "model": "matrix product 8192", "dtype": "bfloat16"}, measure_product),
        *block_jobs(None),
        *block_jobs(functools.cache(functools.partial(find_kernels, options.peers is not None))),
        *model_jobs(),
        *memory_jobs(),
        *precision_jobs(),
    ]


def block_jobs(kernels: Callable[[], Any] | None) -> Iterator[Job]:
    """Ours, or with `kernels` the peer's."""
    cases = [(224, 128, "infer"), (1248, 1, "infer"), (1248, 8, "infer"), (224, 128, "train"), (1248, 8, "train")]
    for size, batch, mode in cases:
        for name, width in WIDTHS.items():
            shape = {"size": size, "tokens": (size // 16) ** 2 + 1, "batch": batch, "dtype": "bfloat16", "mode": mode}
            measure = functools.partial(measure_block, width, shape["tokens"], batch, mode, kernels=kernels)
            peer = {} if kernels is None else {"peer": "peer"}
            yield Job({"what": "block", "model": name, **shape, **peer}, measure, waits=kernels is not None)


def model_jobs() -> Iterator[Job]:
    cases = [(size, batch, "infer") for size in (1536, 2048, 4096) for batch in (1, 8)]
    for size, batch, mode in [*cases, (2048, 1, "train")]:
        case = Case(VIM, "", mode, size, size, batch, "bfloat16", "cuda")
        yield Job(model_columns("model", case), functools.partial(measure_model, case))
        for name, backends in SDPA.items():
            of_deit = Case(DEIT, "", mode, size, size, batch, "bfloat16", "cuda")
            columns = {**model_columns("model", of_deit), "peer": f"sdpa: {name}"}
            yield Job(columns, functools.partial(measure_model, of_deit, backends))


def memory_jobs() -> Iterator[Job]:
    for name, variant in ((VIM, ""), (VIM, "checkpoint"), (DEIT, "")):
        case = Case(name, variant, "train", 1248, 1248, 8, "bfloat16", "cuda")
        peer = {"peer": "sdpa: default"} if name == DEIT else {}
        yield Job({**model_columns("memory per image", case), **peer}, functools.partial(measure_memory, case))


def model_columns(what: str, case: Case) -> dict[str, Any]:
    shape = {
        "size": case.size,
        "tokens": (case.size // 16) ** 2 + 1,
        "batch": case.batch,
        "dtype": case.dtype,
        "mode": case.mode,
    }
    return {"what": what, "model": case.label, **shape}


def precision_jobs() -> Iterator[Job]:
    for dtype in ("float32", "bfloat16"):
        for mode in ("output", "gradients"):
            columns = {"what": "error against float64", "model": "block", "tokens": 131, "batch": 2}
            yield Job({**columns, "dtype": dtype, "mode": mode}, functools.partial(measure_error, dtype, mode))
    for dtype, batch, tokens in (("float32", 2, 197), ("bfloat16", 8, 197), ("bfloat16", 2, 6085)):
        columns = {"what": "two runs", "model": "block Ti", "tokens": tokens, "batch": batch, "dtype": dtype}
        yield Job({**columns, "mode": "train"}, functools.partial(run_twice, 192, tokens, batch, dtype))


if __name__ == "__main__":
    sys.exit(main())
