"""Which operators take a model's time, by torch's profiler: how much of it computes, and how much is bound by memory,
as EfficientViT's authors counted it (arXiv 2305.07027, section 2.1)."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from longvision.explain.finding import Finding, as_csv
from longvision.inference.predictor import Predictor
from longvision.viz.charts import draw_times

WARM_UP, CALLS = 2, 5
LOG_LEVEL = "KINETO_LOG_LEVEL"
COMPUTE, MEMORY = "compute", "memory"
# A kind of operators -> part of their names in torch; the first that fits.
KINDS = {
    "scans": r"longvision::(mixer|selective_scan|cross_scan)",
    "matrix products": r"mm$|mv$|matmul|linear$|attention|einsum|dot$",  # upsample_bilinear2d is none
    "convolutions": r"conv|nnpack",
    "normalisation": r"norm",
    "softmax": r"softmax",
    "pooling and sums": r"pool|mean|sum|::a?(max|min)$",
    "element-wise": r"elu|silu|glu|sigmoid|swish|mish|tanh|dropout|softplus|bernoulli|lerp|masked|logical|bitwise"
    r"|::(add|addcmul|addcdiv|r?sub|mul|div|reciprocal|remainder|fmod|exp2?|expm1|log(2|10|1p)?|pow|square|r?sqrt|abs"
    r"|neg|sign|sgn|maximum|minimum|fmax|fmin|clamp(_min|_max)?|threshold|where|erfc?|floor|ceil|round|trunc|sin|cos|tan"
    r"|atan2?|eq|ne|lt|le|gt|ge|isnan|isinf|isfinite)_?$",
    "reshape and copy": r"copy|clone|contiguous|cat$|stack|pad|roll|index|gather|slice|select|split|chunk|unbind"
    r"|view|shape|permute|transpose|flatten|expand|squeeze|as_strided|narrow|repeat|fill|zero|empty|resize|unfold|upsample"
    r"|alias|detach|resolve|::(t|to|arange|promote_types)$",
}
BOUND = {"scans": COMPUTE, "matrix products": COMPUTE, "convolutions": COMPUTE, "other": "other"}  # the rest by memory


@dataclass(frozen=True)
class OperatorTime:
    """Of one of torch's operators: its time without what it calls, in ms, and calls, of one image each."""

    name: str
    kind: str
    ms: float
    calls: float

    @property
    def bound(self) -> str:
        return BOUND.get(self.kind, MEMORY)


def explain_operators(predictor: Predictor, images: Sequence[Path]) -> Iterator[Finding]:
    """For `longvision explain`, of one image of the model's own size."""
    spec = predictor.description.input
    found = measure_operators(predictor.model, torch.zeros(1, spec.channels, *spec.size, device=predictor.device))
    what = f"{predictor.description.architecture} at {spec.size[0]}x{spec.size[1]} on {predictor.device.type}"
    total = sum(one.ms for one in found)
    share_of: dict[str, float] = {}
    for one in found:
        share_of[one.kind] = share_of.get(one.kind, 0.0) + one.ms / total
    bound = sum(share for kind, share in share_of.items() if BOUND.get(kind, MEMORY) == MEMORY)
    bars = [
        (kind, share, BOUND.get(kind, MEMORY) == MEMORY)
        for kind, share in sorted(share_of.items(), key=lambda item: -item[1])
    ]
    yield Finding(
        f"{what}: {bound:.0%} of {total:.3g} ms is bound by memory "
        f"({', '.join(f'{kind} {share:.0%}' for kind, share, _ in bars)})",
        {
            "operators.csv": as_csv([_row(one, total) for one in found]),
            "operators.png": partial(
                draw_times, bars, title=f"{what}: {bound:.0%} of {total:.3g} ms is bound by memory"
            ),
        },
    )


def _row(one: OperatorTime, total: float) -> dict[str, Any]:
    return {
        "operator": one.name,
        "kind": one.kind,
        "bound": one.bound,
        "ms": f"{one.ms:.4f}",
        "share": f"{one.ms / total:.4f}",
        "calls": f"{one.calls:g}",
    }


@torch.inference_mode()
def measure_operators(model: nn.Module, image_BCHW: Tensor) -> list[OperatorTime]:
    """Of each operator, the slowest first, averaged over a few calls of the model in evaluation mode."""
    model.eval()
    for _ in range(WARM_UP):
        model(image_BCHW)
    on_gpu = image_BCHW.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _quiet_profiler(), profile(activities=activities) as profiled:
        for _ in range(CALLS):
            model(image_BCHW)
        if on_gpu:
            torch.cuda.synchronize()
    return operator_times(profiled.key_averages(), on_gpu)


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Else it writes about GPUs where there is none."""
    given = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "99")
    try:
        yield
    finally:
        if given is None:
            del os.environ[LOG_LEVEL]


def operator_times(events: Iterable[Any], on_gpu: bool) -> list[OperatorTime]:
    """Of what `profile.key_averages()` returns over CALLS calls, the slowest first.

    On a GPU an operator has its kernels' time, and the kernels are events of their own beside it, which are left out.
    """
    found = []
    for event in events:
        ms = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3 / CALLS
        if ms > 0 and "::" in event.key and event.device_type == DeviceType.CPU:
            found.append(OperatorTime(event.key, kind_of(event.key), ms, event.count / CALLS))
    return sorted(found, key=lambda one: -one.ms)


def kind_of(operator: str) -> str:
    """Of one of torch's operators, such as "aten::mm"."""
    return next((kind for kind, part in KINDS.items() if re.search(part, operator)), "other")
