"""`longvision benchmark`: speed and memory of models, or of the operator that Vim is made of."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longvision.benchmark.folder import make_folder, write_csv
from longvision.benchmark.plan import ModelsPlan, OpsPlan
from longvision.files import check_new_folder
from longvision_cli.benchmark_options import HELP, parse

if TYPE_CHECKING:
    from longvision.benchmark.models import ModelsBenchmark
    from longvision.benchmark.ops import OpsBenchmark


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    plan, out = parse(arguments)
    if out is not None:
        check_new_folder(out, "--out")
    return _models(plan, out) if isinstance(plan, ModelsPlan) else _ops(plan, out)


def _models(plan: ModelsPlan, out: str | None) -> int:
    from longvision.benchmark.models import ModelsBenchmark
    from longvision.benchmark.table import models_table

    benchmark = ModelsBenchmark(plan)
    work = f"{plan.mode} with {plan.head}" if plan.head else plan.mode
    print(f"{work}, batch {plan.batch}, {plan.dtype}, {benchmark.device_name}; × is a multiple of {benchmark.baseline}")
    cases = len(plan.models) * len(plan.sizes)
    print(_cost(cases, plan.budget, f"{cases * plan.rounds} process starts of a few seconds each"))
    folder = _measure(benchmark, out, "models.csv", models_table)
    if any(row["ms_median"] for row in benchmark.rows()):
        _draw(benchmark.rows(), folder / "models.png")
    return _finish(benchmark, folder)


def _ops(plan: OpsPlan, out: str | None) -> int:
    from longvision.benchmark.ops import OpsBenchmark
    from longvision.benchmark.table import ops_table

    benchmark = OpsBenchmark(plan)
    print(f"{plan.mode}, batch {plan.batch}, {plan.channels} channels, {plan.dtype}, {benchmark.device_name}")
    cases = len(plan.tokens) * (len(benchmark.scans) + 1)
    print(_cost(cases, plan.budget, "the checks of the backends"))
    folder = _measure(benchmark, out, "ops.csv", ops_table)
    return _finish(benchmark, folder) or int(benchmark.is_wrong)


def _cost(cases: int, budget: float, on_top: str) -> str:
    """How many cases there are, and what they take if each uses its budget up."""
    total = cases * budget
    most = f"{total:.3g} s" if total < 120 else f"{math.ceil(total / 60)} min"
    return (
        f"{cases} case{'s' * (cases > 1)} × {budget:g} s (--budget): at most {most}; "
        f"on top come {on_top}, and calls that alone take longer than a budget"
    )


def _measure(
    benchmark: "ModelsBenchmark | OpsBenchmark",
    out: str | None,
    name: str,
    table: Callable[[list[dict[str, Any]]], str],
) -> Path:
    """-> the folder with the rows, written anew after each step; the table of what there is comes in any case."""
    was_there = out is not None and Path(out).exists()
    folder = make_folder(out)
    start, terminal = time.monotonic(), sys.stderr.isatty()
    try:
        # At once: whoever kills the process still wants to find the rows.
        print(f"results: {folder / name}", flush=True)
        for news in benchmark.run():
            write_csv(folder / name, benchmark.rows())
            minutes, seconds = divmod(int(time.monotonic() - start), 60)
            _say(f"{minutes}:{seconds:02}  {news}", terminal)
    finally:
        if terminal:
            _say("", terminal)
        if rows := benchmark.rows():
            print(table(rows))
        elif not was_there:
            folder.rmdir()
    return folder


def _say(line: str, terminal: bool) -> None:
    """On a terminal one line that changes, elsewhere one after the other."""
    if terminal:
        line = f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}"
    print(line, end="" if terminal else "\n", file=sys.stderr, flush=True)


def _finish(benchmark: "ModelsBenchmark | OpsBenchmark", folder: Path) -> int:
    """-> the exit code, 1 where there is not a single time."""
    print(folder)
    if any(row["ms_median"] for row in benchmark.rows()):
        return 0
    print("nothing was measured, the table says why: raise --budget, or measure something smaller", file=sys.stderr)
    return 1


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    if find_spec("matplotlib") is None:
        print("no chart: it needs matplotlib (pip install matplotlib)", file=sys.stderr)
        return
    from longvision.benchmark.chart import draw_models

    draw_models(rows, path)
