"""What is measured: the device's ceilings, blocks and models in time and memory, and how exact a block is."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import gpu_peers as peers
import torch
from gpu_timing import time_calls
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longvision.benchmark.build import Step
from longvision.benchmark.case import Case
from longvision.benchmark.memory import measure_peak
from longvision.layers import VimBlock
from longvision.ops.common import BACKEND_VARIABLE

# Ceilings


def measure_copy(numbers: int = 2**31, device: str = "cuda") -> dict[str, Any]:
    source = torch.randn(numbers // 8, device=device).bfloat16().repeat(8)
    target = torch.empty_like(source)
    row = time_calls([lambda: target.copy_(source)], device)
    speed = 2 * source.nbytes / row["median_us"] / 1e6
    return {**row, "status": f"{row['status']}: {speed:.3g} TB/s, read and written"}


def measure_product(side: int = 8192, device: str = "cuda") -> dict[str, Any]:
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    row = time_calls([lambda: torch.mm(left, right, out=out)] * 4, device)
    return {**row, "status": f"{row['status']}: {2 * side**3 / row['median_us'] / 1e6:.3g} TFLOP/s"}


# Blocks


class Subject(NamedTuple):
    """A block as it is called: the residual stream x -> its inputs -> its outputs, whose sum is the new stream."""

    split: Callable[[Tensor], tuple[Tensor, ...]]
    call: Callable[..., tuple[Tensor, ...]]
    peer: str = ""
    note: str = ""


def measure_block(
    width: int,
    tokens: int,
    batch: int,
    mode: str,
    dtype: str = "bfloat16",
    device: str = "cuda",
    kernels: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Ours, or with `kernels` the peer's: what these return are the authors' `Kernels`, or why there are none."""
    torch.manual_seed(0)
    block = make_block(width, mode, dtype, device)
    subject = ours(block) if kernels is None else peer_of(block, kernels(), getattr(torch, dtype))
    shape = batch, tokens, width
    wrong = difference(subject, block, torch.randn(shape, device=device), dtype)
    calls = list(block_calls(subject, block, shape, mode, dtype))
    calls[0]()
    _, peak = measure_peak(calls[0], device)
    row = {**time_calls(calls, device), "peak_mb": megabytes(peak), "peer": subject.peer}
    if not wrong <= (1e-4 if dtype == "float32" else 5e-2):  # the rounding of both; NaN is wrong, too
        row["status"] = f"wrong: {wrong:.2g} from longvision's block"
    elif subject.note:
        row["status"] += f" ({subject.note})"
    return row


def make_block(width: int, mode: str, dtype: str, device: str) -> VimBlock:
    block = VimBlock(width).to(device)
    return block.train() if mode == "train" else block.to(getattr(torch, dtype)).eval().requires_grad_(False)


def ours(block: VimBlock) -> Subject:
    return Subject(lambda x: (x,), lambda x: (block(x),))


def peer_of(block: VimBlock, kernels: Any, dtype: torch.dtype) -> Subject:
    if isinstance(kernels, str):
        call = functools.partial(peers.launch_sequence, block)
        return Subject(lambda x: (x,), lambda x: (call(x),), peers.STAND_IN, f"no {peers.AUTHORS}: {kernels}")

    def split(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.randn_like(x).to(dtype)
        return hidden, x - hidden

    return Subject(split, functools.partial(peers.authors_block, kernels, block), kernels.label)


@torch.no_grad()
def difference(subject: Subject, block: VimBlock, x: Tensor, dtype: str) -> float:
    """Of what is added to the stream, relative to longvision's."""
    with autocast(x.device.type, dtype, block):
        branch = block(x) - x
        other = functools.reduce(torch.add, subject.call(*subject.split(x))) - x
    return float((other.float() - branch).norm() / branch.norm())


def block_calls(
    subject: Subject, block: VimBlock, shape: tuple[int, ...], mode: str, dtype: str
) -> Iterator[Callable[[], None]]:
    """The same call on inputs of its own each."""
    device = block.norm.weight.device
    for _ in range(sets_of(shape) if device.type == "cuda" else 2):
        inputs = [t.detach().requires_grad_(mode == "train") for t in subject.split(torch.randn(shape, device=device))]
        gradients = [torch.randn_like(t) for t in inputs]
        forward = functools.partial(infer, subject, inputs)
        yield forward if mode == "infer" else functools.partial(train, subject, block, inputs, gradients, dtype)


def sets_of(shape: Sequence[int]) -> int:
    """How many float32 tensors of that shape are more than any L2 cache holds."""
    size = 4 * functools.reduce(int.__mul__, shape)
    return min(16, max(2, 2**28 // size))


@torch.inference_mode()
def infer(subject: Subject, inputs: Sequence[Tensor]) -> None:
    subject.call(*inputs)


def train(
    subject: Subject, block: VimBlock, inputs: Sequence[Tensor], gradients: Sequence[Tensor], dtype: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """-> outputs, and the gradients of the inputs and the block's parameters."""
    with autocast(inputs[0].device.type, dtype, block):
        outputs = subject.call(*inputs)
    return outputs, torch.autograd.grad(outputs, [*inputs, *block.parameters()], gradients)


def autocast(device: str, dtype: str, block: VimBlock) -> torch.autocast:
    """For weights in float32; those in bfloat16 need none. Without its cache, which a graph would read too late."""
    wanted = dtype == "bfloat16" and block.norm.weight.dtype == torch.float32
    return torch.autocast(device, torch.bfloat16, enabled=wanted, cache_enabled=False)


# Models


def measure_model(case: Case, backends: Sequence[SDPBackend] = ()) -> dict[str, Any]:
    """A model in `longvision benchmark`'s form; `backends` of attention, by default torch's choice."""
    torch.manual_seed(0)
    step = Step(case)
    with attention(backends):
        step()
        step.clear()
        _, peak = measure_peak(step, case.device)
        step.clear()
        return {**time_calls([step], case.device), "peak_mb": megabytes(peak)}


def attention(backends: Sequence[SDPBackend]) -> AbstractContextManager[Any]:
    return sdpa_kernel(list(backends)) if backends else nullcontext()


def measure_memory(case: Case) -> dict[str, Any]:
    """Of a training step, per image."""
    step = Step(case)
    step()
    step.clear()
    _, peak = measure_peak(step, case.device)
    return {"peak_mb": megabytes(None if peak is None else peak / case.batch), "status": "ok"}


def megabytes(count: float | None) -> float | None:
    return None if count is None else round(count / 1e6, 1)


# Precision


def measure_error(dtype: str, mode: str, device: str = "cuda") -> dict[str, Any]:
    """In the column `ratio`: the error's norm over the truth's, in float64 by the equations; of tensors the worst."""
    errors = relative_errors(dtype, device)
    asked = [errors[name] for name in errors if (name == "output") == (mode == "output")]
    worst = max(asked, key=lambda error: float("inf") if error != error else error)  # NaN is the worst
    return {"ratio": float(f"{worst:.2e}"), "baseline": "float64, reference backend on the CPU", "status": "ok"}


@functools.cache
def relative_errors(dtype: str, device: str) -> dict[str, float]:
    torch.manual_seed(0)
    block = VimBlock(64)
    x, gradient = torch.randn(2, 131, 64), torch.randn(2, 131, 64)
    found = results(block.to(device), x.to(device), gradient.to(device), dtype)
    with environment(BACKEND_VARIABLE, "reference"):
        truth = results(block.cpu().double(), x.double(), gradient.double(), "float64")
    return {name: float((found[name].cpu().double() - value).norm() / value.norm()) for name, value in truth.items()}


def run_twice(width: int, tokens: int, batch: int, dtype: str, device: str = "cuda") -> dict[str, Any]:
    """In the column `ratio`: how many of output and gradients differ in any bit."""
    torch.manual_seed(0)
    block = VimBlock(width).to(device)
    x, gradient = torch.randn(2, batch, tokens, width, device=device)
    first, second = (results(block, x, gradient, dtype) for _ in range(2))
    differ = [name for name in first if not torch.equal(first[name], second[name])]
    return {"ratio": len(differ), "baseline": "first run", "status": f"ok: differ {differ}"[:200] if differ else "ok"}


def results(block: VimBlock, x: Tensor, gradient: Tensor, dtype: str) -> dict[str, Tensor]:
    """What is added to the stream, and every gradient."""
    x = x.detach().requires_grad_()
    (output,), grads = train(ours(block), block, [x], [gradient], dtype)
    names = ["x", *(name for name, _ in block.named_parameters())]
    return {"output": (output - x).detach(), **dict(zip(names, grads, strict=True))}


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
