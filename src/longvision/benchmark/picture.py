"""Speed and memory against resolution, as Figure 1 of arXiv 2401.09417. Needs matplotlib, of the extra `train`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longvision.benchmark.table import Row

# Okabe and Ito's colours, which the colour-blind tell apart too; markers for print without colour.
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
ENDS = {"out of memory": "OOM", "over budget": "over budget", "killed": "killed"}  # a status begins so, shown as


def draw_models(rows: Sequence[Row], path: Path) -> None:
    """Two panels, both axes logarithmic; a cross where a model could go no further."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    first = rows[0]
    work = "training step" if first["mode"] == "train" else "inference"
    figure = Figure(figsize=(11, 5), layout="constrained")
    conditions = [work, f"batch {first['batch']}", first["dtype"], first["device"], _threads(rows)]
    figure.suptitle(", ".join(filter(None, conditions)), fontsize=10)
    for axes, column, label in zip(
        figure.subplots(1, 2), ("ms_median", "peak_mb"), ("time an image, ms", "peak memory of a call, MB"), strict=True
    ):
        _panel(axes, rows, column, label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, rows: Sequence[Row], column: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for number, name in enumerate(_names(rows)):
        mine = [row for row in rows if _name(row) == name]
        shown = [row for row in mine if row[column]]
        sides = [row["asked"] for row in shown]
        values = [row[column] / (row["batch"] if column == "ms_median" else 1) for row in shown]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        end = _end(mine)
        axes.plot(sides, values, color=colour, marker=marker, markersize=5, label=f"{name} (× {end})" if end else name)
        if end and shown:
            axes.plot(sides[-1:], values[-1:], color=colour, marker="x", markersize=13, markeredgewidth=2.5)
    axes.set(xscale="log", xlabel="image side, pixels", ylabel=label)
    sides = sorted({row["asked"] for row in rows})
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
                return f"{shown} at {row['asked']}"
    return ""


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(_name(row) for row in rows))


def _name(row: Row) -> str:
    return f"{row['model']}+{row['variant']}" if row["variant"] else row["model"]


def _threads(rows: Sequence[Row]) -> str:
    counts = {row["threads"] for row in rows if row["threads"]}
    return ", ".join(f"{count} thread{'s' * (count > 1)}" for count in sorted(counts))
