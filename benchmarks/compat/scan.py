"""compat.selective_scan_fn, (B, D, L), against our own op, (B, M, E), and the equations in plain torch.

Rows for benchmarks/results/compat.csv: forward, and forward and backward, at two lengths of Vim-S's inner width. Run:
python benchmarks/compat/scan.py [THREADS]
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from longvision.benchmark.case import milliseconds, quantile, significant
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import write_rows
from longvision.benchmark.timing import stopwatch
from longvision.compat.mamba_ssm import selective_scan_fn, selective_scan_ref
from longvision.ops import selective_scan

TABLE = Path(__file__).parents[1] / "results" / "compat.csv"
CHANNELS, STATES, LENGTHS = 384, 16, (1025, 6085)
ROUNDS, CALLS, CALLS_OF_REFERENCE = 6, 10, 1
PER_TOKEN = 0, 1, 3, 4, 6  # of the arguments


def arguments(tokens: int, last: bool) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias, channels last or as mamba_ssm has them; contiguous."""
    torch.manual_seed(0)
    u, delta, z = (torch.randn(1, tokens, CHANNELS) for _ in range(3))
    B, C = (torch.randn(1, tokens, STATES) for _ in range(2))
    A, D, bias = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1), torch.ones(CHANNELS), torch.randn(CHANNELS) - 4
    tensors = [u, delta, A, B, C, D, z, bias]
    return tensors if last else [t.mT.contiguous() if i in PER_TOKEN else t for i, t in enumerate(tensors)]


def call_of(function: Callable[..., Tensor], mode: str, tokens: int) -> Callable[[], object]:
    own = arguments(tokens, last=function is selective_scan)
    grad = torch.randn_like(own[0])

    def infer() -> Tensor:
        with torch.no_grad():
            return function(*own, True)

    def train() -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in own]
        return torch.autograd.grad(function(*leaves, True), leaves, grad)

    return infer if mode == "infer" else train


def measure(mode: str, tokens: int) -> list[dict[str, object]]:
    """A row each, in turns, so that a disturbance falls on all."""
    calls = {"op": selective_scan, "selective_scan_fn": selective_scan_fn, "selective_scan_ref": selective_scan_ref}
    timed = {name: stopwatch(call_of(function, mode, tokens), "cpu") for name, function in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in timed.items():
            times = CALLS_OF_REFERENCE if name.endswith("ref") else CALLS
            call()
            seconds[name] += [call() for _ in range(times)]
    medians = {name: quantile(found, 0.5) for name, found in seconds.items()}
    return [
        {
            **{"function": name, "mode": mode, "tokens": tokens, "channels": CHANNELS, "states": STATES, "batch": 1},
            **{"dtype": "float32", "threads": torch.get_num_threads(), "device": device_name("cpu")},
            **milliseconds(found),
            "samples": len(found),
            "op_ratio": significant(medians[name] / medians["op"], 3),
            "reference_ratio": significant(medians[name] / medians["selective_scan_ref"], 3),
            **provenance(),
        }
        for name, found in seconds.items()
    ]


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    rows = [row for mode in ("infer", "train") for tokens in LENGTHS for row in measure(mode, tokens)]
    for row in rows:
        print(*(row[name] for name in ("function", "mode", "tokens", "ms_median", "op_ratio", "reference_ratio")))
    write_rows(TABLE, rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
