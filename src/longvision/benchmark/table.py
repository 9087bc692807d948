"""Rows as text, for people."""

from collections.abc import Sequence
from typing import Any

from longvision.benchmark.case import PRODUCTS, REFERENCE

Row = dict[str, Any]

COLD = "~"
COLD_NOTE = f"{COLD}: rests on a first call, which is not warm; raise --budget for more samples"


def models_table(rows: Sequence[Row]) -> str:
    """A group of lines for each size that was requested."""
    model = " ".join(["model", *with_head(rows)])
    header = ("size", model, "ms", "quartiles", "images/s", "MB", "GMACs", "time ×", "memory ×", "")
    cold = {(name(row), row["requested"]) for row in rows if _is_cold(row)}
    cells = [_model_cells(row, cold) for row in rows]
    first, *lines = align(header, cells, left=2)
    out, group = [first], None
    for row, line in zip(rows, lines):
        if row["requested"] != group:
            out.append("")
            group = row["requested"]
        out.append(line)
    return "\n".join([*out, *_below(_cold_note(cells) + _no_baseline_note(rows))])


def name(row: Row) -> str:
    """The model as the user writes it."""
    return f"{row['model']}+{row['form']}" if row["form"] else row["model"]


def label(row: Row) -> str:
    """The same, and whether its blocks are checkpointed."""
    return f"{name(row)}, checkpointed" if row["checkpoint"] else name(row)


def with_head(rows: Sequence[Row]) -> list[str]:
    """["with HEAD"], or [] for models alone, as those of a file that is older than the column."""
    return [f"with {head}" for head in dict.fromkeys(row.get("head") for row in rows) if head]


def _model_cells(row: Row, cold: set[tuple[str, int]]) -> list[str]:
    notes = [] if row["status"] == "ok" else [row["status"]]
    if row["size"] != row["requested"]:
        notes.append(f"the nearest that it takes to {row['requested']}")
    if _is_cold(row):
        notes.append(f"samples: {row['samples']}")
    doubtful = not cold.isdisjoint({(name(row), row["requested"]), (row["baseline"], row["requested"])})
    return [
        str(row["size"]),
        label(row),
        _number(row["ms_median"]),
        _quartiles(row),
        _number(row["images_per_s"]),
        _number(row["peak_mb"]),
        _number(row["gmacs"]),
        _ratio(row["time_ratio"], doubtful),
        _ratio(row["memory_ratio"], doubtful),
        "; ".join(notes),
    ]


def ops_table(rows: Sequence[Row]) -> str:
    header = ("tokens", "backend", "ms", "quartiles", "products ×", "reference ×", "samples", "")
    cold = {(row["backend"], row["tokens"]) for row in rows if _is_cold(row)}
    cells = [_op_cells(row, cold) for row in rows]
    return "\n".join([*align(header, cells, left=2), *_below(_cold_note(cells))])


def _op_cells(row: Row, cold: set[tuple[str, int]]) -> list[str]:
    def doubtful(yardstick: str) -> bool:
        return not cold.isdisjoint({(row["backend"], row["tokens"]), (yardstick, row["tokens"])})

    return [
        str(row["tokens"]),
        row["backend"],
        _number(row["ms_median"]),
        _quartiles(row),
        _ratio(row["products_ratio"], doubtful(PRODUCTS)),
        _ratio(row["reference_ratio"], doubtful(REFERENCE)),
        row["samples"],
        "" if row["status"] == "ok" else row["status"],
    ]


def align(header: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns side by side; the first `left` and the last, which holds notes, begin at the left."""
    widths = [max(map(len, column)) for column in zip(header, *lines)]
    last = len(header) - 1

    def one(cells: Sequence[str]) -> str:
        padded = [
            f"{cell:<{width}}" if number < left or number == last else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths))
        ]
        return "  ".join(padded).rstrip()

    return [one(header), *map(one, lines)]


def _is_cold(row: Row) -> bool:
    """Whether a call without a warm-up is among the samples, which are few then."""
    return "first" in row["samples"]


def _cold_note(lines: Sequence[Sequence[str]]) -> list[str]:
    return [COLD_NOTE] if any(cell.startswith(COLD) for cells in lines for cell in cells) else []


def _no_baseline_note(rows: Sequence[Row]) -> list[str]:
    """Which sizes have times but no ratios, and why."""
    lone = dict.fromkeys(row["requested"] for row in rows if row["ms_median"] is not None and row["time_ratio"] is None)
    if not lone:
        return []
    sizes = ", ".join(map(str, lone))
    return [f"no × at {sizes}: the baseline {rows[0]['baseline']} has no time there; name another with --baseline"]


def _below(notes: Sequence[str]) -> list[str]:
    return ["", *notes] if notes else []


def _ratio(value: float | None, doubtful: bool) -> str:
    return f"{COLD if doubtful and value is not None else ''}{_number(value, 3)}"


def _quartiles(row: Row) -> str:
    return "-" if row["ms_q1"] is None else f"{_number(row['ms_q1'])} – {_number(row['ms_q3'])}"


def _number(value: float | None, digits: int = 4) -> str:
    """Without an exponent, whatever the size."""
    if value is None:
        return "-"
    if value >= 10 ** (digits - 1):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text else f"{value:.6f}"
