"""Which launch configuration of the Triton kernels is the fastest on this GPU, by measuring them."""

import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError

from longvision.benchmark.case import OUT_OF_MEMORY, sentence
from longvision.benchmark.memory import is_out_of_memory
from longvision.ops.kernels.triton import scan
from longvision.ops.kernels.triton.configurations import KERNELS, Configuration, configuration, forced
from longvision.ops.kernels.triton.layout import kept_shape

CHANNELS, PIECES = (32, 64, 128), (2, 4, 8)
# The shipped one first: of those that start the same the first is taken. With the least of them a long image is still
# split, which matters as a row also serves shapes far from its own.
PROGRAMS = (1056, 528, 2112, 264)
MOST_IN_REGISTERS = 2048  # channels times states of a warp: more spills
MOST_TOKENS = 2**20  # of a batch
FAILURES = (RuntimeError, TritonError)  # out of memory, too many registers, what does not compile
FAR = float("inf")


class Shape(NamedTuple):
    batch: int
    tokens: int
    width: int
    states: int


class Tried(NamedTuple):
    """`off` says by how much the result differs from that of the configuration so far, as a part of it; `failed` why
    there is none."""

    kernel: str
    chosen: Configuration
    seconds: float
    off: float
    failed: str = ""


def shapes(
    batches: list[int], tokens: list[int], widths: list[int], states: list[int]
) -> tuple[list[Shape], list[Shape]]:
    """-> every combination of not more than MOST_TOKENS tokens, and those of more."""
    every = [Shape(*sizes) for sizes in dict.fromkeys(itertools.product(batches, tokens, widths, states))]
    fits = [shape.batch * shape.tokens <= MOST_TOKENS for shape in every]
    return list(itertools.compress(every, fits)), [shape for shape, fit in zip(every, fits) if not fit]


def candidates(kernel: str, shape: Shape) -> list[Configuration]:
    """What is tried for the kernel, each launch once."""
    return _distinct(kernel, shape, _combinations(kernel, shape))


def _distinct(kernel: str, shape: Shape, every: Iterable[Configuration]) -> list[Configuration]:
    """The first of those that start the same."""
    found: dict[object, Configuration] = {}
    for chosen in every:
        launch = _read(kernel, chosen) | {"programs": _groups(kernel, shape, chosen)}
        found.setdefault(tuple(launch.items()), chosen)
    return list(found.values())


def _groups(kernel: str, shape: Shape, chosen: Configuration) -> tuple[int, int] | None:
    """How the kernel cuts the tokens; None for the one that is told."""
    if "programs" not in KERNELS[kernel]:
        return None
    tiles = -(-shape.width // chosen.channels)
    return scan.grouping(shape.tokens, shape.batch * tiles, chosen.programs)


def _read(kernel: str, chosen: Configuration) -> dict[str, int]:
    """What of it the kernel reads."""
    return {name: getattr(chosen, name) for name in KERNELS[kernel]}


def _combinations(kernel: str, shape: Shape) -> Iterator[Configuration]:
    for channels in CHANNELS:
        if channels * shape.states > MOST_IN_REGISTERS or channels >= 2 * max(32, shape.width):
            continue
        if kernel == "scan_ends":
            yield Configuration(channels)
        elif kernel == "scan_forward":
            yield from (Configuration(channels, programs=programs) for programs in PROGRAMS)
        elif channels * shape.states <= MOST_IN_REGISTERS // 2:  # the adjoint states are in registers, too
            both = itertools.product(PROGRAMS, PIECES)
            yield from (Configuration(channels, programs=programs, piece=piece) for programs, piece in both)


def tune(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    tolerance: float,
    time: Callable[[Callable[[], object]], float],
    say: Callable[[Tried], None] = lambda tried: None,
) -> list[dict]:
    """-> for each kernel a row with the fastest configuration whose result is right, if any is; `time` gives a call's
    seconds."""
    rows = []
    call, grad_BME, states_BKEN = _call(shape, dtype, device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "any"
    work: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "scan_ends": lambda: (scan.forward(call),),
        "scan_forward": lambda: (scan.forward(call),),
        "scan_backward": lambda: tuple(t for t in scan.backward(call, grad_BME, states_BKEN) if t is not None),
    }
    for kernel in KERNELS:
        if kernel == "scan_ends" and not scan.is_split(call):
            continue
        so_far = configuration(kernel, call.x_BME, shape.states)
        try:
            truth = work[kernel]()
        except FAILURES as error:
            say(Tried(kernel, so_far, FAR, FAR, reason(error)))
            continue
        found = []
        for chosen in _distinct(kernel, shape, [*candidates(kernel, shape), so_far]):
            found.append(_try(kernel, chosen, work[kernel], truth, tolerance, time))
            say(found[-1])
        best = min(found, key=lambda tried: tried.seconds)
        if best.seconds == FAR:
            continue
        microseconds = round(best.seconds * 1e6, 1)
        origin = {"microseconds": microseconds, "dtype": str(dtype), "date": datetime.date.today().isoformat()}
        worth = _worth(kernel, shape, best.chosen)
        rows.append({"kernel": kernel, "device": name, **shape._asdict(), **worth, **origin})
    return rows


def _try(
    kernel: str,
    chosen: Configuration,
    work: Callable[[], tuple[Tensor, ...]],
    truth: tuple[Tensor, ...],
    tolerance: float,
    time: Callable[[Callable[[], object]], float],
) -> Tried:
    try:
        with forced(kernel, chosen):
            off = _distance(work(), truth)
            return Tried(kernel, chosen, time(work) if off <= tolerance else FAR, off)
    except FAILURES as error:
        return Tried(kernel, chosen, FAR, FAR, reason(error))


def reason(error: Exception) -> str:
    """Why it failed, in a line."""
    return OUT_OF_MEMORY if is_out_of_memory(error) else sentence(error)


def _worth(kernel: str, shape: Shape, best: Configuration) -> dict[str, int]:
    """What is worth writing down: what the kernel reads, without `programs` where all start the same."""
    read = _read(kernel, best)
    others = (_groups(kernel, shape, best._replace(programs=programs)) for programs in PROGRAMS)
    if "programs" in read and len({_groups(kernel, shape, best), *others}) == 1:
        del read["programs"]
    return read


def _call(shape: Shape, dtype: torch.dtype, device: str) -> tuple[scan.Scan, Tensor, Tensor]:
    """-> a direction's inputs as Vim has them, a gradient, and the states kept for the backward pass."""
    generator = torch.Generator(device=device).manual_seed(0)
    batch, tokens, width, states = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    rates = torch.arange(1.0, states + 1, device=device).log().expand(width, states).contiguous()
    step_BME = (0.1 * torch.rand(batch, tokens, width, generator=generator, device=device)).to(dtype)
    pairs = normal(batch, tokens, states, 2)
    inputs = normal(batch, tokens, width).to(dtype), step_BME, pairs, rates, normal(width), None, None
    call = scan.Scan(*inputs, softplus="taken", log_decay=True, reverse=False)
    states_BKEN = torch.empty(kept_shape(*shape), device=device)
    scan.forward(call, states=states_BKEN)
    return call, normal(batch, tokens, width).to(dtype), states_BKEN


def _distance(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest relative difference of norms; not finite counts as far."""
    far = max((a.float() - b.float()).norm().item() / (b.float().norm().item() + 1e-30) for a, b in zip(found, truth))
    return far if far == far else FAR


def seconds_of(call: Callable[[], object], calls: int = 20) -> float:
    """The median of a call on the GPU, by its own clock."""
    for _ in range(3):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(calls)]
    for before, behind in marks:
        before.record()
        call()
        behind.record()
    torch.cuda.synchronize()
    return sorted(before.elapsed_time(behind) for before, behind in marks)[calls // 2] / 1e3
