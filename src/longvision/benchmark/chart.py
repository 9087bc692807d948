"""Speed and memory against resolution, as Figure 1 of arXiv 2401.09417. Needs matplotlib, of the extra `train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longvision.benchmark.table import Row, label, with_head

# Okabe and Ito's colours, which the colour-blind tell apart too; markers for print without colour. One marker fewer
# than colours: 42 lines pass before a pair of them comes back.
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000")
MARKERS = "osD^vP"
ENDS = {"out of memory": "OOM", "over budget": "over budget", "killed": "killed"}  # a status begins so, shown as


def draw_models(rows: Sequence[Row], path: Path, names: Sequence[str] = ()) -> None:
    """Two panels, both axes logarithmic; quartiles as thin bars, a cross where a model could go no further.

    `names` are all models of a run: their order gives each its colour, the same in every chart of some of them.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    first = rows[0]
    styles = _styles([*names, *map(label, rows)])
    work = " ".join(["training step" if first["mode"] == "train" else "inference", *with_head(rows)])
    figure = Figure(figsize=(11, 5), layout="constrained")
    conditions = [work, f"batch {first['batch']}", first["dtype"], first["device"], _threads(rows)]
    figure.suptitle(", ".join(filter(None, conditions)), fontsize=10)
    for axes, column, quantity in zip(
        figure.subplots(1, 2), ("ms_median", "peak_mb"), ("time an image, ms", "peak memory of a call, MB"), strict=True
    ):
        for name, style in styles.items():
            if mine := [row for row in rows if label(row) == name]:
                _line(axes, mine, column, style)
        _finish(axes, rows, column, quantity)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _styles(names: Sequence[str]) -> dict[str, dict[str, str]]:
    return {
        name: {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        for number, name in enumerate(dict.fromkeys(names))
    }


def _line(axes: Any, rows: Sequence[Row], column: str, style: dict[str, str]) -> None:
    """Of one model. Where nothing of it was measured, the legend alone says why."""
    shown = [row for row in rows if row[column]]
    sides = [row["requested"] for row in shown]
    values = [row[column] / (row["batch"] if column == "ms_median" else 1) for row in shown]
    name, end = label(rows[0]), _end(rows)
    cross = "× " if shown else ""
    axes.plot(sides, values, **style, markersize=5, label=f"{name} ({cross}{end})" if end else name)
    if column == "ms_median":
        lower, upper = ([row[quartile] / row["batch"] for row in shown] for quartile in ("ms_q1", "ms_q3"))
        axes.vlines(sides, lower, upper, color=style["color"], linewidth=1)
    if end and shown:
        axes.plot(sides[-1:], values[-1:], color=style["color"], marker="x", markersize=13, markeredgewidth=2.5)


def _finish(axes: Any, rows: Sequence[Row], column: str, quantity: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(xscale="log", xlabel="image side, pixels", ylabel=quantity)
    sides = sorted({row["requested"] for row in rows})
    axes.set_xticks(sides, [str(side) for side in sides], fontsize=8)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if not any(row[column] for row in rows):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.margins(0.08, 0.12)
    axes.grid(alpha=0.3)


def _end(rows: Sequence[Row]) -> str:
    """ "OOM at 1024", of the first row that failed for want of memory or time; "" where all went through."""
    for row in rows:
        for status, shown in ENDS.items():
            if row["status"].startswith(status):
                return f"{shown} at {row['requested']}"
    return ""


def _threads(rows: Sequence[Row]) -> str:
    counts = {row["threads"] for row in rows if row["threads"]}
    return ", ".join(f"{count} thread{'s' * (count > 1)}" for count in sorted(counts))
