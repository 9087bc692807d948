"""Models against models: every case in a process of its own, one at a time, in turns."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch

from longvision.benchmark.build import VARIANTS, create
from longvision.benchmark.case import (
    DTYPES,
    HEADS,
    MODES,
    OK,
    OVER_BUDGET,
    Case,
    Result,
    Round,
    milliseconds,
    quantile,
    sample_count,
    significant,
)
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.worker import TOO_LONG
from longvision.models.backbone import create_features
from longvision.models.cost import measure_cost
from longvision.models.pyramid import STRIDES

WORKER = [sys.executable, "-P", "-m", "longvision.benchmark.worker"]  # -P: a folder "timm" here is not the library
ROUNDS = 3
PATIENCE = 5  # budgets that a single call may take
# Widths of patches and windows in use: a size that a model refuses is rounded down to a multiple of one of them.
STEPS = (8, 14, 16, 28, 32, 56, 64, 112, 224)


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises ValueError, before anything is started, for what cannot be."""

    labels: Sequence[str]
    sizes: Sequence[int]
    mode: str = "infer"
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    budget: float = 60.0  # seconds a case, over all rounds
    baseline: str | None = None
    rounds: int = ROUNDS
    head: str = ""  # one of HEADS on every backbone, or none

    def __post_init__(self) -> None:
        check_choice("--mode", self.mode, MODES)
        check_choice("--dtype", self.dtype, DTYPES)
        check_device(self.device)
        if self.head:
            check_choice("--head", self.head, HEADS)
        if self.head == "cascade" and self.dtype == "float64":
            raise ValueError("--dtype float64: boxes of --head cascade are float32: choose float32 or bfloat16")
        if not self.sizes:
            raise ValueError("--sizes is empty: give image sides such as 224,512")
        if self.batch < 1:
            raise ValueError(f"--batch {self.batch}: expected at least 1 image")
        if not 0 < self.budget < float("inf"):
            raise ValueError(f"--budget {self.budget:g}: expected a number of seconds above 0")
        if not self.labels:
            raise ValueError("--models is empty: give names such as vim_tiny_patch16_224, separated by commas")
        for label in self.labels:
            check_label(label, self.mode)
            if self.head:
                check_head(label.split("+")[0], self.head)
        if self.baseline is not None and self.baseline not in self.labels:
            raise ValueError(f"--baseline {self.baseline} is not measured: choose one of {', '.join(self.labels)}")

    def yardstick(self) -> str:
        """What the others are divided by: the one asked for, or the first model that is not ours."""
        ours = timm.list_models(module="vim")
        peers = [label for label in self.labels if label.split("+")[0] not in ours]
        return self.baseline or (peers or list(self.labels))[0]


def check_choice(option: str, given: str, choices: Sequence[str]) -> None:
    if given not in choices:
        raise ValueError(f"{option} {given!r} is unknown: expected one of {', '.join(choices)}")


def check_device(device: str) -> None:
    check_choice("--device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here: use --device cpu")


def check_label(label: str, mode: str) -> None:
    """NAME or NAME+VARIANT, of a model that exists and has that form."""
    name, plus, variant = label.partition("+")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else '`longvision models "*"` lists those there are'
        raise ValueError(f"unknown model {name!r}: {hint}")
    if not plus:
        return
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of {name}: expected one of {', '.join(VARIANTS)}")
    if variant == "checkpoint" and mode != "train":
        raise ValueError(f"{label}: checkpointing changes training only: add --mode train, or leave +checkpoint out")
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        VARIANTS[variant](model)
    except Exception as error:
        raise ValueError(f"{name} has no variant {variant}: {error or type(error).__name__}") from error


def check_head(name: str, head: str) -> None:
    """Its library is there, and the backbone has the maps that it needs."""
    try:
        with torch.device("meta"):
            create(name, 224, head)
    except Exception as error:
        raise ValueError(f"--head {head} on {name}: {error or type(error).__name__}") from error


class ModelBenchmark:
    """A plan, and its results so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.results: list[Result] = []
        self._left_out = 0
        self.origin = provenance()
        self.device = device_name(plan.device)

    @property
    def cases(self) -> int:
        return len(self.plan.sizes) * len(self.plan.labels)

    @property
    def steps(self) -> int:
        """Rounds, done and to come: fewer once a case has failed or used its budget up."""
        return self.cases * self.plan.rounds - self._left_out

    def run(self) -> Iterator[tuple[int, str]]:
        """Measure; yields the number of steps done, and the news. Stopping in between loses nothing.

        The models take turns, so that a disturbance of minutes falls on all of them.
        """
        done = 0
        for size in self.plan.sizes:
            results = [self._start(label, size) for label in self.plan.labels]
            self.results += results
            for number in range(self.plan.rounds):
                for result in results:
                    if number > 0 and self._ended(result):
                        continue
                    done += 1
                    news = self._round(result, number)
                    if self._ended(result):
                        self._left_out += self.plan.rounds - number - 1
                    yield done, f"{size} px  {result.case.label}  round {number + 1} of {self.plan.rounds}: {news}"

    def _start(self, label: str, asked: int) -> Result:
        plan = self.plan
        name, _, variant = label.partition("+")
        size, macs = fitting_size(name, asked, plan.head)
        case = Case(name, variant, plan.mode, asked, size, plan.batch, plan.dtype, plan.device, plan.head)
        result = Result(case, macs)
        for before in self.results:
            if before.case.label == label and before.ended_the_model:
                result.status = f"skipped: {before.status.split(':')[0]} at {before.case.asked}"
                break
        return result

    def _ended(self, result: Result) -> bool:
        return result.status != OK or result.spent >= self.plan.budget

    def _round(self, result: Result, number: int) -> str:
        """-> what came out, or why the case is skipped."""
        if result.status != OK:
            return result.status
        share = (self.plan.budget - result.spent) / (self.plan.rounds - number)
        done = launch(result.case, share, PATIENCE * self.plan.budget, measure_memory=number == 0)
        result.add(done)
        return f"{1e3 * quantile(done.seconds, 0.5):.4g} ms" if done.seconds else done.status

    def rows(self) -> list[dict[str, Any]]:
        """What there is so far, one row a case, as in the CSV file."""
        finished = [result for result in self.results if result.measured or result.status != OK]
        yardstick = self.plan.yardstick()
        baselines = {result.case.asked: result for result in finished if result.case.label == yardstick}
        return [
            {
                **_figures(result, self.device),
                **_ratios(result, baselines.get(result.case.asked)),
                "baseline": yardstick,
                "status": result.status,
                **self.origin,
            }
            for result in finished
        ]


def fitting_size(name: str, asked: int, head: str = "") -> tuple[int, int | None]:
    """-> the nearest size up to `asked` that the model accepts, and its multiply-adds; tried on the meta device.

    With a head they are not counted: how much it has to do depends on what it finds. A model that accepts no size is
    left at the one asked for: then the process that runs it says why.
    """
    smaller = sorted({asked // step * step for step in STEPS} - {0, asked}, reverse=True)
    for size in (asked, *smaller):
        try:
            if head:
                _try_maps(name, size)
                return size, None
            return size, measure_cost(name, size, size).macs
        except Exception:  # each model refuses in its own words
            continue
    return asked, None


def _try_maps(name: str, size: int) -> None:
    """As heads ask for them, whose maps nest: of the image padded to a multiple of 32. Raises what the model raises."""
    with torch.device("meta"):
        padded = size + -size % STRIDES[-1]
        create_features(name, 3, (size, size)).eval()(torch.empty(1, 3, padded, padded))


def launch(
    case: Case, share: float, patience: float, measure_memory: bool = True, memory_limit: int | None = None
) -> Round:
    """One round in a process of its own. Only that process is ended if this one is interrupted."""
    task = {
        "case": asdict(case),
        "share": share,
        "patience": patience,
        "measure_memory": measure_memory,
        "memory_limit": memory_limit,
    }
    with subprocess.Popen(
        WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": _python_path()},
    ) as process:
        try:
            out, err = process.communicate(json.dumps(task))
        except BaseException:
            process.kill()
            process.wait()  # leaving Popen's context does not, after Ctrl-C
            raise
    return _answer(process.returncode, out, err, patience)


def _python_path() -> str:
    """The worker has to find this package, not another version of it."""
    here = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))


def _answer(code: int, out: str, err: str, patience: float) -> Round:
    if code == TOO_LONG:
        return Round(f"{OVER_BUDGET}: no call in {patience:g} s", spent=patience)
    if code < 0:
        why = ": probably out of memory" if -code in (6, 9) else ""  # SIGABRT, SIGKILL
        return Round(f"killed (signal {-code}){why}")
    if code != 0:
        lines = err.strip().splitlines()
        return Round(f"failed: {lines[-1] if lines else f'exit code {code}'}")
    try:
        return Round(**json.loads(out.strip().splitlines()[-1]))
    except (IndexError, TypeError, ValueError):  # it printed nothing, or something else
        return Round("failed: the worker ended without an answer")


def _figures(result: Result, device: str) -> dict[str, Any]:
    """The columns of a case alone. Where it failed they are empty."""
    case, seconds = result.case, result.seconds if result.measured else []
    times = milliseconds(seconds) if seconds else {"ms_median": None, "ms_q1": None, "ms_q3": None}
    median = quantile(seconds, 0.5) if seconds else None
    peak = result.peak_bytes if result.measured else None
    return {
        "model": case.model,
        "variant": case.variant,
        "head": case.head,
        "attention": result.attention,
        "mode": case.mode,
        "asked": case.asked,
        "size": case.size,
        "batch": case.batch,
        "dtype": case.dtype,
        "device": device,
        "threads": result.threads or None,
        **times,
        "samples": sample_count(len(seconds), result.first_calls) if seconds else "0",
        "images_per_s": significant(case.batch / median) if median else None,
        "peak_mb": None if peak is None else round(peak / 1e6, 1),
        "gmacs": None if result.macs is None else round(result.macs / 1e9, 3),
    }


def _ratios(result: Result, baseline: Result | None) -> dict[str, float | None]:
    """Time and memory as multiples of the baseline's at the same size asked for."""
    ratios: dict[str, float | None] = {"time_ratio": None, "memory_ratio": None}
    if baseline is None or not (result.measured and baseline.measured):
        return ratios
    ratios["time_ratio"] = significant(quantile(result.seconds, 0.5) / quantile(baseline.seconds, 0.5), 3)
    if result.peak_bytes is not None and baseline.peak_bytes:
        ratios["memory_ratio"] = significant(result.peak_bytes / baseline.peak_bytes, 3)
    return ratios
