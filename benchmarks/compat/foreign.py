"""What the drivers of other people's model files share: a forward, a backward and a training step, timed.

A driver is run with a checkout of its repository, which stays as it is:

    python -m longvision.compat benchmarks/compat/run_vmamba.py CHECKOUT    on our kernels
    python benchmarks/compat/run_vmamba.py CHECKOUT                         on its own plain torch, if it has any

LONGVISION_SCAN_BACKEND=reference before the first takes our equations in plain torch instead of the kernels. Each
appends a row to benchmarks/results/compat_models.csv.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from longvision.benchmark.case import quantile, significant
from longvision.benchmark.memory import measure_peak
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows
from longvision.benchmark.timing import stopwatch

TABLE = Path(__file__).parents[1] / "results" / "compat_models.csv"
BUDGET, MOST_CALLS = 8.0, 10  # seconds for the calls of a kind, beside the first


def checkout(folder_inside: str, file: str) -> Path:
    """The repository that the user names, with that folder of it on the path; `file` is there, or it is another."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], folder_inside, file).is_file():
        sys.exit(f"expected the path of a checkout that has {Path(folder_inside, file)}")
    sys.path.insert(0, str(Path(sys.argv[1], folder_inside).resolve()))
    return Path(sys.argv[1])


def ways() -> str:
    """Whose scan runs."""
    extensions = [sys.modules.get(f"selective_scan_cuda{own}") for own in ("", "_core", "_oflex")]
    ours = any("__longvision__" in getattr(extension, "__dict__", ()) for extension in extensions)
    return f"longvision: {os.environ.get('LONGVISION_SCAN_BACKEND') or 'kernels'}" if ours else "its own torch"


def report(
    name: str, repository: Path, model: nn.Module, images: Tensor, loss_of: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    """Loss and norm of the gradients, by which two ways are compared; times of a forward without gradients, of forward
    and backward, and of a step of AdamW; memory of each."""
    loss = loss_of(model.eval(), images)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    outcome = {
        **{"loss": significant(loss.item(), 6), "gradient_norm": significant(norm.item(), 6)},
        "without_gradient": sum(parameter.grad is None for parameter in model.parameters()),
        "not_finite": sum(not gradient.isfinite().all() for gradient in gradients),
    }
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def forward() -> None:
        with torch.no_grad():
            loss_of(model.eval(), images)

    def backward() -> None:
        model.train().zero_grad(set_to_none=True)
        loss_of(model, images).backward()

    def step() -> None:
        backward()
        optimizer.step()

    columns: dict[str, object] = {}
    for kind, call in (("forward", forward), ("backward", backward), ("step", step)):
        milliseconds, megabytes = _measure(call)
        columns |= {f"{kind}_ms": milliseconds, f"{kind}_mb": megabytes}
    row = {
        **{"model": name, "scan": ways(), "input": "x".join(map(str, images.shape))},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **outcome,
        **columns,
        "their_commit": _commit(repository),
        **{"threads": torch.get_num_threads(), "device": device_name("cpu"), **provenance()},
    }
    print(row)
    write_rows(TABLE, [*read_rows(TABLE), row])


def _measure(call: Callable[[], None]) -> tuple[float, float | None]:
    """-> median of its milliseconds, and megabytes above what there was before, at most."""
    timed = stopwatch(call, "cpu")
    timed()
    seconds = [timed()]
    while len(seconds) < MOST_CALLS and sum(seconds) < BUDGET:
        seconds.append(timed())
    _, peak = measure_peak(call, "cpu")
    return significant(1e3 * quantile(seconds, 0.5)), None if peak is None else significant(peak / 2**20)


def _commit(repository: Path) -> str:
    done = subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()[:7]
