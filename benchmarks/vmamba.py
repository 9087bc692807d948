"""VMamba-T (s1l8) beside ConvNeXt-T, and beside the authors' own model file on its fallback in plain torch, where a
checkout of theirs is named: one image, forward, in turns. First, both must give the same logits from the same weights.

A row a model and size is appended to benchmarks/results/vmamba.csv. Time on a machine that does nothing else.

Run: python benchmarks/vmamba.py [CHECKOUT]        CHECKOUT: of https://github.com/MzeroMiko/VMamba
"""

import contextlib
import importlib
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import longvision  # noqa: F401 registers the models
from longvision.benchmark.case import quantile
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows

TABLE = Path(__file__).parent / "results" / "vmamba.csv"
OURS, PEER, THEIRS = "vmamba_tiny_s1l8_224", "convnext_tiny", "authors' vmamba_tiny_s1l8, plain torch"
SIZES = (224, 512, 1024)
ROUNDS, BUDGET = 15, 60.0  # calls of a model, and seconds after which no further one is made


def authors_model(checkout: Path) -> Any:
    """From their file as it is; of fvcore, with which it counts, it needs the names alone."""
    counting = types.ModuleType("fvcore.nn")
    for name in ("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count"):
        setattr(counting, name, None)
    for name, module in {"fvcore": types.ModuleType("fvcore"), "fvcore.nn": counting}.items():
        sys.modules.setdefault(name, module)
    # It enters torch.cuda.device with the device of its tensors, which torch refuses for a CPU's.
    torch.cuda.device = lambda _: contextlib.nullcontext()  # type: ignore[assignment, misc]
    sys.path.insert(0, str(checkout / "classification/models"))
    return importlib.import_module("vmamba").vmamba_tiny_s1l8()


def check(ours: Any, theirs: nn.Module) -> None:
    """Raises AssertionError where they do not compute the same."""
    ours.load_state_dict(ours.from_released(theirs.state_dict()))
    image = torch.randn(1, 3, 96, 64)
    got, truth = ours(image), theirs(image)
    error = float((got - truth).norm() / truth.norm())
    assert error < 1e-5, f"logits differ by {error}"
    print(f"the same logits to {error:.1e}, relative norm")


def timed(models: dict[str, nn.Module], image: Tensor) -> dict[str, list[float]]:
    """Seconds of each call, in turns; the first call of each is not counted where there are others."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(ROUNDS + 1):
        for name, model in models.items():
            if sum(seconds[name]) < BUDGET:
                seconds[name].append(seconds_of(lambda model=model: model(image)))  # type: ignore[misc]
        if number == 0:
            print({name: round(found[0], 3) for name, found in seconds.items()}, flush=True)
    return {name: found[1:] or found for name, found in seconds.items()}


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    models = {name: timm.create_model(name).eval() for name in (OURS, PEER)}
    if len(sys.argv) > 1:
        models[THEIRS] = authors_model(Path(sys.argv[1])).eval()
        check(models[OURS], models[THEIRS])
    rows = read_rows(TABLE)
    for size in SIZES:
        found = timed(models, torch.randn(1, 3, size, size))
        peer = quantile(found[PEER], 0.5)
        for name, seconds in found.items():
            shares = {"median": 0.5, "q1": 0.25, "q3": 0.75}
            times = {f"ms_{word}": round(1e3 * quantile(seconds, share), 2) for word, share in shares.items()}
            rows.append(
                {"model": name, "size": size, "threads": torch.get_num_threads(), **times, "samples": len(seconds)}
                | {"times_convnext": round(quantile(seconds, 0.5) / peer, 3), "device": device_name("cpu")}
                | provenance()
            )
            print(rows[-1])
        write_rows(TABLE, rows)


if __name__ == "__main__":
    main()
