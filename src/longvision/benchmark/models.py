"""Models against models: every case in a process of its own, one at a time, in turns."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from longvision.benchmark.build import checkpoint_blocks, create, materialise_attention
from longvision.benchmark.case import OK, OUT_OF_MEMORY, OVER_BUDGET, Case, Result, Round, ratio, significant
from longvision.benchmark.plan import ModelsPlan
from longvision.benchmark.provenance import choose_device, device_name, provenance
from longvision.benchmark.timing import take_turns
from longvision.benchmark.worker import TOO_LONG
from longvision.errors import UserError
from longvision.models.backbone import check_exists, create_features
from longvision.models.cost import measure_cost
from longvision.models.pyramid import STRIDES
from longvision.models.registered import is_ours

WORKER = [sys.executable, "-P", "-m", "longvision.benchmark.worker"]  # -P: a folder "timm" here is not the library
PATIENCE = 5  # budgets that a single call may take
# Widths of patches and windows in use: a size that a model refuses is rounded down to a multiple of one of them.
STEPS = (8, 14, 16, 28, 32, 56, 64, 112, 224)


class ModelsBenchmark:
    """A plan, and its results so far. Raises UserError, before anything is started, for what cannot be measured."""

    def __init__(self, plan: ModelsPlan) -> None:
        for label in plan.models:
            check_model(label, plan.head)
        self.plan = plan
        self.device = choose_device(plan.device)
        self.device_name = device_name(self.device)
        self.results: list[Result] = []
        self.origin = provenance()
        peers = [label for label in plan.models if not is_ours(label.split("+")[0])]
        self.baseline = plan.baseline or (peers or list(plan.models))[0]

    def run(self) -> Iterator[str]:
        """Measure; yields the news. Stopping in between loses nothing."""
        plan = self.plan
        for size in plan.sizes:
            results = [self._start(label, size) for label in plan.models]
            self.results += results
            yield from (f"{size} px  {it.case.label}: {it.status}" for it in results if it.status != OK)
            yield from (f"{size} px  {news}" for news in take_turns(results, plan.rounds, plan.budget, self._measure))

    def _start(self, label: str, requested: int) -> Result:
        plan = self.plan
        name, _, form = label.partition("+")
        size, macs = fitting_size(name, requested, plan.head)
        checkpoint = plan.checkpoint and can_checkpoint(name, plan.head)
        case = Case(name, form, plan.mode, requested, size, plan.batch, plan.dtype, self.device, plan.head, checkpoint)
        for before in self.results:
            if before.case.label == label and before.status.startswith((OUT_OF_MEMORY, OVER_BUDGET, "killed")):
                return Result(case, f"skipped: {before.status.split(':')[0]} at {before.case.requested}", macs)
        return Result(case, OK, macs)

    def _measure(self, result: Result, share: float) -> Round:
        return launch(result.case, share, PATIENCE * self.plan.budget, measure_memory=not result.rounds)

    def rows(self) -> list[dict[str, Any]]:
        """What there is so far, one row a case, as in the CSV file."""
        final = [result for result in self.results if result.is_final]
        baselines = {result.case.requested: result for result in final if result.case.label == self.baseline}
        return [self._row(result, baselines.get(result.case.requested)) for result in final]

    def _row(self, result: Result, baseline: Result | None) -> dict[str, Any]:
        case, peak = result.case, result.peak_bytes
        ran = next((done for done in result.rounds if done.threads), Round())
        return {
            "model": case.model,
            "form": case.form,
            "checkpoint": "yes" if case.checkpoint else "",
            "head": case.head,
            "attention": ran.attention,
            "mode": case.mode,
            "requested": case.requested,
            "size": case.size,
            "batch": case.batch,
            "dtype": case.dtype,
            "device": self.device_name,
            "threads": ran.threads or None,
            **result.times(),
            "images_per_s": significant(case.batch / result.median) if result.median else None,
            "peak_mb": None if peak is None else round(peak / 1e6, 1),
            "gmacs": None if result.macs is None else round(result.macs / 1e9, 3),
            "time_ratio": ratio(result.median, baseline.median if baseline else None),
            "memory_ratio": ratio(peak, baseline.peak_bytes if baseline else None),
            "baseline": self.baseline,
            "status": result.status,
            **self.origin,
        }


def check_model(label: str, head: str) -> None:
    """NAME or NAME+materialised, of a model that exists, has that form, and the maps that the head needs."""
    name, _, form = label.partition("+")
    check_exists(name)
    if not (form or head):
        return
    try:
        model = on_meta(name, head)
    except Exception as error:
        raise UserError(f"--head {head} on {name}: {error or type(error).__name__}") from error
    if form:
        try:
            materialise_attention(model)
        except UserError as error:
            raise UserError(f"{name} has no form {form}: {error}") from error


@functools.cache
def can_checkpoint(name: str, head: str) -> bool:
    return checkpoint_blocks(on_meta(name, head))


def on_meta(name: str, head: str) -> nn.Module:
    """The model without memory, to ask it something."""
    with torch.device("meta"):
        return create(name, 224, head) if head else timm.create_model(name)


@functools.cache
def fitting_size(name: str, requested: int, head: str = "") -> tuple[int, int | None]:
    """-> the nearest size up to `requested` that the model accepts, and its multiply-adds; tried on the meta device.

    With a head they are not counted: how much it has to do depends on what it finds. A model that accepts no size is
    left at the one requested: then the process that runs it says why.
    """
    smaller = sorted({requested // step * step for step in STEPS} - {0, requested}, reverse=True)
    for size in (requested, *smaller):
        try:
            if head:
                _try_maps(name, size)
                return size, None
            return size, measure_cost(name, size, size).macs
        except Exception:  # each model refuses in its own words
            continue
    return requested, None


def _try_maps(name: str, size: int) -> None:
    """As heads ask for them, whose maps nest: of the image padded to a multiple of 32. Raises what the model raises."""
    with torch.device("meta"):
        padded = size + -size % STRIDES[-1]
        create_features(name, 3, (size, size)).eval()(torch.empty(1, 3, padded, padded))


def launch(
    case: Case, share: float, patience: float, measure_memory: bool = True, memory_limit: int | None = None
) -> Round:
    """One round in a process of its own. Only that process is ended if this one is interrupted."""
    limits = {"share": share, "patience": patience, "measure_memory": measure_memory, "memory_limit": memory_limit}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # The worker has to find this package, not another version of it.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(WORKER, env=os.environ | {"PYTHONPATH": path}, **pipes) as process:  # type: ignore[call-overload]
        try:
            out, err = process.communicate(json.dumps({"case": asdict(case), **limits}))
        except BaseException:
            process.kill()
            process.wait()  # leaving Popen's context does not, after Ctrl-C
            raise
    return _answer(process.returncode, out, err, patience)


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
