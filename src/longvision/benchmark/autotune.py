"""Which launch configuration of the Triton kernels is the fastest on this GPU, by measuring them."""

import datetime
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.triton import scan
from longvision.ops.triton.configurations import Configuration, configuration, forced
from longvision.ops.triton.layout import kept_shape

CHANNELS, PIECES, PROGRAMS = (32, 64, 128), (2, 4, 8), (1, 528, 1056, 2112)
MOST_IN_REGISTERS = 2048  # channels times states of a warp: more spills
MOST_TOKENS = 2**20  # of a batch
KERNELS = ("scan_ends", "scan_forward", "scan_backward")


class Shape(NamedTuple):
    batch: int
    tokens: int
    width: int
    states: int


class Tried(NamedTuple):
    """`off` says by how much the result differs from that of the shipped configuration, as a part of it."""

    kernel: str
    chosen: Configuration
    seconds: float
    off: float


def shapes(batches: list[int], tokens: list[int], widths: list[int], states: list[int]) -> list[Shape]:
    """Every combination of not more than MOST_TOKENS tokens."""
    every = itertools.product(batches, tokens, widths, states)
    return [Shape(*shape) for shape in every if shape[0] * shape[1] <= MOST_TOKENS]


def candidates(kernel: str, shape: Shape) -> Iterator[Configuration]:
    """What is tried for the kernel."""
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
    """-> for each kernel a row with the fastest configuration whose result is right; `time` gives a call's seconds."""
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
        shipped = configuration(kernel, call.x_BME, shape.states)
        truth = work[kernel]()
        found = []
        for chosen in dict.fromkeys([shipped, *candidates(kernel, shape)]):
            with forced(kernel, chosen):
                off = _distance(work[kernel](), truth)
                seconds = time(work[kernel]) if off <= tolerance else float("inf")
            found.append(Tried(kernel, chosen, seconds, off))
            say(found[-1])
        best = min(found, key=lambda tried: tried.seconds)
        microseconds = round(best.seconds * 1e6, 1)
        origin = {"microseconds": microseconds, "dtype": str(dtype), "date": datetime.date.today().isoformat()}
        rows.append({"kernel": kernel, "device": name, **shape._asdict(), **best.chosen._asdict(), **origin})
    return rows


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
    return far if far == far else float("inf")


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
