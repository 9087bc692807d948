"""What a method found: a sentence, and files with the drawing and the numbers."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One result.

    Args:
        sentence: what was found, for the terminal.
        files: name of each file -> what writes it to a path, which does not exist yet.
    """

    sentence: str
    files: Mapping[str, Callable[[Path], None]]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> Callable[[Path], None]:
    """What writes rows that have the same columns."""

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    return write


def as_json(numbers: Any) -> Callable[[Path], None]:
    """What writes numbers, names and lists or dictionaries of them."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    return write
