"""Backends of the selective scan against each other, and against the matrix products that surround it in a block."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.benchmark.case import OK, OUT_OF_MEMORY, PRODUCTS, REFERENCE, OpCase, Result, Round, ratio, sentence
from longvision.benchmark.plan import OpsPlan
from longvision.benchmark.provenance import choose_device, device_name, provenance
from longvision.benchmark.scans import Inputs, Scan, check, make_inputs, scans
from longvision.benchmark.timing import stopwatch, take_turns, time_round
from longvision.errors import is_out_of_memory


class OpsBenchmark:
    """A plan, and its results so far."""

    def __init__(self, plan: OpsPlan) -> None:
        self.plan = plan
        self.device = choose_device(plan.device)
        self.device_name = device_name(self.device)
        self.dtype: torch.dtype = getattr(torch, plan.dtype)
        self.scans = scans()
        self.results: list[Result] = []
        self.origin = provenance()

    @property
    def is_wrong(self) -> bool:
        """Whether a backend computes something else."""
        return any(result.status.startswith(("wrong", "failed")) for result in self.results)

    def run(self) -> Iterator[str]:
        """Check every backend, then measure those that are right; they take turns. Yields the news."""
        plan, statuses = self.plan, {PRODUCTS: OK}
        for name, scan in self.scans.items():
            statuses[name] = check(scan, plan.states, self.dtype, self.device)
            yield f"{name}: {'right' if statuses[name] == OK else statuses[name]}"
        for tokens in plan.tokens:
            results = [Result(OpCase(name, tokens), status) for name, status in statuses.items()]
            self.results += results
            calls = self._calls(tokens, [result.case.backend for result in results if result.status == OK])
            turns = take_turns(results, plan.rounds, plan.budget, functools.partial(self._measure, calls))
            yield from (f"{tokens} tokens  {news}" for news in turns)

    def _calls(self, tokens: int, names: list[str]) -> dict[str, Callable[[], object]]:
        plan = self.plan
        inputs = make_inputs(plan.batch, tokens, plan.channels, plan.states, self.dtype, self.device)
        calls = {name: scan_call(self.scans[name], inputs, plan.mode) for name in names if name != PRODUCTS}
        return {PRODUCTS: products_call(plan, tokens, self.device), **calls}

    def _measure(self, calls: dict[str, Callable[[], object]], result: Result, share: float) -> Round:
        timed = stopwatch(calls[result.case.backend], self.device)
        try:
            return replace(time_round(timed, timed(), share), threads=torch.get_num_threads())
        except Exception as error:
            return Round(OUT_OF_MEMORY if is_out_of_memory(error) else f"failed: {sentence(error)}")

    def rows(self) -> list[dict[str, Any]]:
        """What there is so far, one row a backend and number of tokens, as in the CSV file."""
        final = [result for result in self.results if result.is_final]
        medians = {(result.case.backend, result.case.tokens): result.median for result in final}
        plan = self.plan
        return [
            {
                "backend": result.case.backend,
                "mode": plan.mode,
                "dtype": plan.dtype,
                "tokens": result.case.tokens,
                "channels": plan.channels,
                "states": plan.states,
                "batch": plan.batch,
                "device": self.device_name,
                "threads": torch.get_num_threads(),
                **result.times(),
                "products_ratio": ratio(result.median, medians.get((PRODUCTS, result.case.tokens))),
                "reference_ratio": ratio(result.median, medians.get((REFERENCE, result.case.tokens))),
                "status": result.status,
                **self.origin,
            }
            for result in final
        ]


def scan_call(scan: Scan, inputs: Inputs, mode: str) -> Callable[[], None]:
    return make_call(lambda given: [scan.run(dict(zip(inputs, given)), False, None)], list(inputs.values()), mode)


def products_call(plan: OpsPlan, tokens: int, device: str) -> Callable[[], None]:
    """The matrix products of a Vim block on as many tokens, E = channels, D = E / 2: what a scan has to keep up with.

    in_proj D -> 2 E; for each direction x_proj E -> R + 2 N and dt_proj R -> E, R = ceil(D / 16); out_proj E -> D.
    """
    inner, dim = plan.channels, plan.channels // 2
    rank = math.ceil(dim / 16)
    low = rank + 2 * plan.states
    shapes = [(dim, 2 * inner), (inner, low), (inner, low), (rank, inner), (rank, inner), (inner, dim)]
    options: dict[str, Any] = {"dtype": getattr(torch, plan.dtype), "device": device}
    inputs = [torch.randn(plan.batch, tokens, narrow, **options) for narrow, _ in shapes]
    weights = [torch.randn(wide, narrow, **options) for narrow, wide in shapes]

    def products(given: list[Tensor]) -> list[Tensor]:
        return [F.linear(x, weight) for x, weight in zip(given[: len(shapes)], given[len(shapes) :])]

    return make_call(products, [*inputs, *weights], plan.mode)


def make_call(forward: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor], mode: str) -> Callable[[], None]:
    """The forward pass alone, or with mode "train" the backward pass too, to gradients of all inputs."""

    def infer() -> None:
        with torch.inference_mode():
            forward(inputs)

    if mode == "infer":
        return infer
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    with torch.no_grad():
        gradients = [torch.ones_like(y) for y in forward(leaves)]

    def train() -> None:
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(forward(leaves), gradients)

    return train
