"""Rows as text, for people."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


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


def models_table(rows: Sequence[Row]) -> str:
    """A group of lines for each size."""
    header = ("size", "model", "ms", "quartiles", "images/s", "MB", "GMACs", "time ×", "memory ×", "")
    lines = align(header, [_model_cells(row) for row in rows], left=2)
    out, sizes = lines[:1], [row["asked"] for row in rows]
    for number, line in enumerate(lines[1:]):
        if number == 0 or sizes[number] != sizes[number - 1]:
            out.append("")
        out.append(line)
    return "\n".join(out)


def _model_cells(row: Row) -> list[str]:
    notes = [] if row["status"] == "ok" else [row["status"]]
    if row["size"] != row["asked"]:
        notes.append(f"at {row['size']}, it does not take {row['asked']}")
    if "first" in row["samples"]:
        notes.append(f"samples: {row['samples']}")
    return [
        str(row["asked"]),
        f"{row['model']}+{row['variant']}" if row["variant"] else row["model"],
        _number(row["ms_median"]),
        _quartiles(row),
        _number(row["images_per_s"]),
        _number(row["peak_mb"]),
        _number(row["gmacs"]),
        _number(row["time_ratio"], 3),
        _number(row["memory_ratio"], 3),
        "; ".join(notes),
    ]


def ops_table(rows: Sequence[Row]) -> str:
    header = ("tokens", "backend", "ms", "quartiles", "products ×", "reference ×", "samples", "")
    return "\n".join(align(header, [_op_cells(row) for row in rows], left=2))


def _op_cells(row: Row) -> list[str]:
    return [
        str(row["tokens"]),
        row["backend"],
        _number(row["ms_median"]),
        _quartiles(row),
        _number(row["products_ratio"], 3),
        _number(row["reference_ratio"], 3),
        row["samples"],
        "" if row["status"] == "ok" else row["status"],
    ]


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
