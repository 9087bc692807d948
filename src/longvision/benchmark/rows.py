"""The table of a script in `benchmarks/`: a row a measurement, which a later one is added to."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longvision.files import written_beside


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Those that are there, as text; none without a file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All of them, with every column that one of them has. What is there stays until they are written."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with written_beside(path, overwrite=True) as beside, beside.open("x", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
