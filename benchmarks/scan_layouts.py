"""What the cross scan spares against four scans of permuted copies, and what tensors with contiguous tokens cost.

Run: python benchmarks/scan_layouts.py [--threads N] [--seconds S]. Prints one line a case: the least time of a call in
ms, forward, and forward and backward, each way in turn so that whatever else runs disturbs all alike.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.benchmark.provenance import device_name, provenance
from longvision.ops import cross_scan, selective_scan
from longvision.ops.cross_scan.reference import cross_scan_reference


class Way(NamedTuple):
    run: Callable[[], Tensor]
    leaves: list[Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(options.threads, "threads,", device_name("cpu"), provenance())
    for side, width, states in ((56, 96, 1), (28, 192, 1), (14, 384, 1), (7, 768, 1), (56, 192, 16), (256, 96, 1)):
        report(f"cross scan {side}x{side}, E {width}, N {states}", crosses(side, width, states), options.seconds)
    for tokens in (197, 1025, 6085):
        report(f"layouts, {tokens} tokens, E 384, N 16", layouts(tokens), options.seconds)


def crosses(side: int, width: int, states: int) -> dict[str, Way]:
    tokens, grid = side * side, (side, side)
    x, delta = torch.randn(1, tokens, width), torch.randn(1, tokens, 4, width) - 1
    A, D, bias = -torch.rand(4, width, states) - 0.1, torch.randn(4, width), torch.randn(4, width)
    B, C = torch.randn(1, tokens, 4, states), torch.randn(1, tokens, 4, states)
    given = [t.requires_grad_() for t in (x, delta, A, B, C, D, bias)]
    return {
        "one call": Way(lambda: cross_scan(*given, grid), given),
        "four scans of copies": Way(lambda: cross_scan_reference(*given, grid, scan=selective_scan), given),
    }


def layouts(tokens: int) -> dict[str, Way]:
    width, states = 384, 16
    by_token = [torch.randn(1, tokens, n) for n in (width, width, states, states, width)]
    A, D, bias = -torch.rand(width, states) - 0.1, torch.randn(width), torch.randn(width)

    def way(turn: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Way:
        leaves = [back(t).contiguous().requires_grad_() for t in by_token]
        parameters = [t.clone().requires_grad_() for t in (A, D, bias)]

        def run() -> Tensor:
            x, delta, B, C, z = map(turn, leaves)
            return back(selective_scan(x, delta, parameters[0], B, C, parameters[1], z, parameters[2], True))

        return Way(run, [*leaves, *parameters])

    def same(t: Tensor) -> Tensor:
        return t

    def turned(t: Tensor) -> Tensor:
        return t.transpose(1, 2)

    def copied(t: Tensor) -> Tensor:
        return t.transpose(1, 2).contiguous()

    return {
        "channels contiguous": way(same, same),
        "tokens contiguous": way(turned, turned),
        "tokens contiguous, copied": way(copied, copied),
    }


def report(name: str, ways: dict[str, Way], seconds: float) -> None:
    calls = {
        **{f"{kind}, forward": _forward(way) for kind, way in ways.items()},
        **{f"{kind}, both": _both(way) for kind, way in ways.items()},
    }
    least = dict.fromkeys(calls, float("inf"))
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for way, call in calls.items():
            begun = time.perf_counter()
            call()
            least[way] = min(least[way], time.perf_counter() - begun)
    print(f"{name}:", "; ".join(f"{way} {1e3 * value:.3f}" for way, value in least.items()), flush=True)


def _forward(way: Way) -> Callable[[], object]:
    @torch.no_grad()
    def call() -> object:
        return way.run()

    return call


def _both(way: Way) -> Callable[[], object]:
    with torch.no_grad():
        grad = torch.randn_like(way.run())
    return lambda: torch.autograd.grad(way.run(), way.leaves, grad)


if __name__ == "__main__":
    main()
