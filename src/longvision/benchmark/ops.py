"""Backends of the selective scan against each other, and against the matrix products that surround it in a block."""

import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision.benchmark.case import (
    MODES,
    OK,
    OUT_OF_MEMORY,
    milliseconds,
    quantile,
    sample_count,
    sentence,
    significant,
)
from longvision.benchmark.memory import is_out_of_memory
from longvision.benchmark.models import ROUNDS, check_choice, check_device
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.timing import time_round
from longvision.ops import selective_scan
from longvision.ops.common import BACKENDS

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}
# Largest error that passes, as a part of the largest true value: some roundings of float64 and float32; results in
# bfloat16 and float16 are rounded once, by 2**-8 and 2**-11 at most.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 5e-3, "float16": 6e-4}
REFERENCE, PRODUCTS = "reference", "matrix products"

# By the names of selective_scan's arguments, without their shapes.
Inputs = dict[str, Tensor]
PARAMETERS = ("A", "D", "delta_bias")  # float32 in mixed precision too, as in the mixer


class Scan(NamedTuple):
    """Something that computes the scan, and what of it."""

    run: Callable[[Inputs, bool, Tensor | None], Tensor]
    backward_direction: bool = True
    packed: bool = True


class GateCase(NamedTuple):
    """Small and awkward: odd lengths, a width that no vector divides, borders inside a chunk."""

    batch: int
    tokens: int
    channels: int
    reverse: bool
    borders: tuple[int, ...] | None = None


GATE = (
    GateCase(2, 1, 5, False),
    GateCase(2, 17, 19, False),
    GateCase(1, 63, 33, False),
    GateCase(2, 1, 5, True),
    GateCase(2, 17, 19, True),
    GateCase(1, 63, 33, True),
    GateCase(1, 63, 19, False, (0, 1, 17, 18, 40, 63)),
    GateCase(1, 63, 19, True, (0, 1, 17, 18, 40, 63)),
)


@dataclass(frozen=True)
class OpsPlan:
    """What to measure. Raises ValueError, before anything runs, for what cannot be."""

    tokens: Sequence[int]
    channels: int = 384
    states: int = 16
    batch: int = 1
    dtype: str = "float32"
    mode: str = "infer"
    device: str = "cpu"
    budget: float = 20.0  # seconds a case, over all rounds
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        check_choice("--mode", self.mode, MODES)
        check_choice("--dtype", self.dtype, tuple(DTYPES))
        check_device(self.device)
        for name in ("channels", "states", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least 1")
        if self.channels % 2:
            raise ValueError(f"--channels {self.channels}: expected an even number, a block's inner width is 2 D")
        if not self.tokens or min(self.tokens) < 1:
            raise ValueError(f"--tokens {','.join(map(str, self.tokens))}: expected numbers above 0, such as 197,1025")
        if not 0 < self.budget < float("inf"):
            raise ValueError(f"--budget {self.budget:g}: expected a number of seconds above 0")


@dataclass
class OpResult:
    """One backend at one number of tokens."""

    backend: str
    tokens: int
    status: str = OK
    seconds: list[float] = field(default_factory=list)
    first_calls: int = 0
    spent: float = 0.0

    @property
    def measured(self) -> bool:
        return self.status == OK and bool(self.seconds)


class OpsBenchmark:
    """A plan, and its results so far."""

    def __init__(self, plan: OpsPlan) -> None:
        self.plan = plan
        self.results: list[OpResult] = []
        self.statuses = {PRODUCTS: OK}  # of every backend, once it was checked
        self._left_out = 0
        self.origin = provenance()
        self.device = device_name(plan.device)

    @property
    def wrong(self) -> bool:
        """Whether a backend computes something else."""
        return any(result.status.startswith(("wrong", "failed")) for result in self.results)

    @property
    def cases(self) -> int:
        return len(self.plan.tokens) * (len(scans()) + 1)

    @property
    def steps(self) -> int:
        """Checks and rounds, done and to come: fewer once a backend is not right, or has used its budget up."""
        timed = sum(self.statuses.get(name, OK) == OK for name in (PRODUCTS, *scans()))
        return len(scans()) + len(self.plan.tokens) * self.plan.rounds * timed - self._left_out

    def run(self) -> Iterator[tuple[int, str]]:
        """Check every backend, then measure those that are right; they take turns.

        Yields the number of steps done, and the news.
        """
        done = 0
        for name, scan in scans().items():
            status = self.statuses[name] = check(scan, self.plan)
            done += 1
            yield done, f"{name}: {'right' if status == OK else status}"
        for tokens in self.plan.tokens:
            results = {name: OpResult(name, tokens, status) for name, status in self.statuses.items()}
            self.results += results.values()
            calls = self._calls(tokens, [name for name in results if self.statuses[name] == OK])
            for number in range(self.plan.rounds):
                for name, result in results.items():
                    if self._ended(result):
                        continue
                    done += 1
                    news = self._round(result, calls[name], number)
                    if self._ended(result):
                        self._left_out += self.plan.rounds - number - 1
                    yield done, f"{tokens} tokens  {name}  round {number + 1} of {self.plan.rounds}: {news}"

    def _calls(self, tokens: int, names: Sequence[str]) -> dict[str, Callable[[], None]]:
        plan, known = self.plan, scans()
        inputs = make_inputs(plan.batch, tokens, plan.channels, plan.states, DTYPES[plan.dtype], plan.device)
        calls = {PRODUCTS: products_call(plan, tokens)}
        for name in names:
            if name != PRODUCTS:
                calls[name] = _scan_call(known[name], inputs, plan.mode)
        return calls

    def _ended(self, result: OpResult) -> bool:
        return result.status != OK or result.spent >= self.plan.budget

    def _round(self, result: OpResult, call: Callable[[], None], number: int) -> str:
        """-> what came out."""
        left = self.plan.budget - result.spent

        def timed() -> float:
            start = time.perf_counter()
            call()
            if self.plan.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start

        try:
            timing = time_round(timed, timed(), left / (self.plan.rounds - number))
        except Exception as error:
            result.status = OUT_OF_MEMORY if is_out_of_memory(error) else f"failed: {sentence(error)}"
            return result.status
        result.seconds += timing.seconds
        result.first_calls += timing.first_call
        result.spent += timing.spent
        return f"{1e3 * quantile(timing.seconds, 0.5):.4g} ms"

    def rows(self) -> list[dict[str, Any]]:
        """What there is so far, one row a backend and number of tokens, as in the CSV file."""
        finished = [result for result in self.results if result.measured or result.status != OK]
        by_key = {(result.backend, result.tokens): result for result in finished}
        plan = self.plan
        return [
            {
                "backend": result.backend,
                "mode": plan.mode,
                "dtype": plan.dtype,
                "tokens": result.tokens,
                "channels": plan.channels,
                "states": plan.states,
                "batch": plan.batch,
                "device": self.device,
                "threads": torch.get_num_threads(),
                **_times(result),
                "samples": sample_count(len(result.seconds), result.first_calls) if result.measured else "0",
                "products_ratio": _ratio(result, by_key.get((PRODUCTS, result.tokens))),
                "reference_ratio": _ratio(result, by_key.get((REFERENCE, result.tokens))),
                "status": result.status,
                **self.origin,
            }
            for result in finished
        ]


def _times(result: OpResult) -> dict[str, float | None]:
    if result.measured:
        return {**milliseconds(result.seconds)}
    return {"ms_median": None, "ms_q1": None, "ms_q3": None}


def _ratio(result: OpResult, other: OpResult | None) -> float | None:
    if other is None or not (result.measured and other.measured):
        return None
    return significant(quantile(result.seconds, 0.5) / quantile(other.seconds, 0.5), 3)


def scans() -> dict[str, Scan]:
    """Our backends, and peers that are installed."""
    ours = {name: Scan(_backend(name)) for name in BACKENDS}
    peers = {"mambapy": Scan(_mambapy, backward_direction=False, packed=False)}
    return ours | {name: scan for name, scan in peers.items() if importlib.util.find_spec(name)}


def _backend(name: str) -> Callable[[Inputs, bool, Tensor | None], Tensor]:
    def run(inputs: Inputs, reverse: bool, cu_seqlens: Tensor | None) -> Tensor:
        return selective_scan(
            inputs["x"],
            inputs["delta"],
            inputs["A"],
            inputs["B"],
            inputs["C"],
            inputs["D"],
            inputs["z"],
            inputs["delta_bias"],
            delta_softplus=True,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
            backend=name,
        )

    return run


def _mambapy(inputs: Inputs, reverse: bool, cu_seqlens: Tensor | None) -> Tensor:
    """The parallel scan of mambapy, from the first token on, with softplus and gate where its block takes them."""
    from mambapy.mamba import MambaBlock

    assert not reverse and cu_seqlens is None
    dtype = torch.promote_types(inputs["x"].dtype, torch.float32)
    wide = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    delta = F.softplus(wide["delta"] + wide["delta_bias"])
    y = MambaBlock.selective_scan(None, wide["x"], delta, *(wide[name] for name in "ABCD"))  # reads nothing of itself
    return (y * F.silu(wide["z"])).to(inputs["x"].dtype)


def make_inputs(batch: int, tokens: int, channels: int, states: int, dtype: torch.dtype, device: str) -> Inputs:
    """Steps of 0.01 to 1 and decay rates of 0.1 to 2, as in a trained model; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    normal = {
        "x": (batch, tokens, channels),
        "delta": (batch, tokens, channels),
        "B": (batch, tokens, states),
        "C": (batch, tokens, states),
        "D": (channels,),
        "z": (batch, tokens, channels),
        "delta_bias": (channels,),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in normal.items()}
    inputs["delta"] -= 1
    inputs["A"] = -0.1 - 1.9 * torch.rand(channels, states, generator=generator)
    parameters = torch.promote_types(dtype, torch.float32)
    return {name: t.to(device, parameters if name in PARAMETERS else dtype) for name, t in inputs.items()}


def check(scan: Scan, plan: OpsPlan) -> str:
    """Output and every gradient against the reference in float64: "ok", or what is wrong, or why it is not here."""
    for case in GATE:
        if (case.reverse and not scan.backward_direction) or (case.borders and not scan.packed):
            continue
        inputs = make_inputs(case.batch, case.tokens, case.channels, plan.states, DTYPES[plan.dtype], plan.device)
        borders = None if case.borders is None else torch.tensor(case.borders, device=plan.device)
        try:
            got = value_and_gradients(scan, inputs, case.reverse, borders)
        except (ImportError, NotImplementedError, OSError, ValueError) as error:
            return f"not available: {sentence(error)}"
        except Exception as error:
            return f"failed: {sentence(error)}"
        double = {name: tensor.double() for name, tensor in inputs.items()}
        truth = value_and_gradients(Scan(_backend(REFERENCE)), double, case.reverse, borders)
        for name, expected in truth.items():
            far = distance(got[name], expected)
            if not far <= TOLERANCE[plan.dtype]:
                return f"wrong: {name} off by {far:.2g} ({_describe(case)})"
    return OK


def value_and_gradients(scan: Scan, inputs: Inputs, reverse: bool, cu_seqlens: Tensor | None) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    y = scan.run(leaves, reverse, cu_seqlens)
    y.backward(_direction_like(y))
    gradients = {
        f"gradient of {name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return {"output": y.detach(), **gradients}


def _direction_like(y: Tensor) -> Tensor:
    """A gradient that is exact in every dtype, so that all are held against the same truth."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-4, 5, y.shape, generator=generator).to(y)


def distance(got: Tensor, truth: Tensor) -> float:
    """Largest difference, as a part of the largest true value; NaN stays NaN."""
    largest = truth.abs().max().clamp(min=1e-300)
    return ((got.double() - truth).abs().max() / largest).item()


def _describe(case: GateCase) -> str:
    words = [f"{case.tokens} token{'s' * (case.tokens > 1)}", f"{case.channels} channels"]
    if case.reverse:
        words.append("backward direction")
    if case.borders:
        words.append("packed")
    return ", ".join(words)


def _scan_call(scan: Scan, inputs: Inputs, mode: str) -> Callable[[], None]:
    if mode == "infer":

        def infer() -> None:
            with torch.inference_mode():
                scan.run(inputs, False, None)

        return infer
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    return _training_call(lambda: scan.run(leaves, False, None), list(leaves.values()))


def products_call(plan: OpsPlan, tokens: int) -> Callable[[], None]:
    """The matrix products of a Vim block on as many tokens, E = channels, D = E / 2: what a scan has to keep up with.

    in_proj D -> 2 E; for each direction x_proj E -> R + 2 N and dt_proj R -> E, R = ceil(D / 16); out_proj E -> D.
    """
    inner, dim = plan.channels, plan.channels // 2
    rank = math.ceil(dim / 16)
    low = rank + 2 * plan.states
    shapes = [(dim, 2 * inner), (inner, low), (inner, low), (rank, inner), (rank, inner), (inner, dim)]
    options: dict[str, Any] = {"dtype": DTYPES[plan.dtype], "device": plan.device}
    weights = [torch.randn(wide, narrow, **options) for narrow, wide in shapes]
    inputs = [torch.randn(plan.batch, tokens, narrow, **options) for narrow, _ in shapes]

    def run() -> list[Tensor]:
        return [F.linear(x, weight) for x, weight in zip(inputs, weights)]

    if plan.mode == "infer":

        def infer() -> None:
            with torch.inference_mode():
                run()

        return infer
    leaves = [tensor.requires_grad_() for tensor in (*weights, *inputs)]
    return _training_call(run, leaves)


def _training_call(forward: Callable[[], Tensor | list[Tensor]], leaves: list[Tensor]) -> Callable[[], None]:
    """Forward and backward, with gradients of all that goes in."""
    with torch.no_grad():
        outputs = forward()
    gradients = [torch.ones_like(y) for y in (outputs if isinstance(outputs, list) else [outputs])]
    del outputs

    def train() -> None:
        for leaf in leaves:
            leaf.grad = None
        y = forward()
        torch.autograd.backward(y if isinstance(y, list) else [y], gradients)

    return train
