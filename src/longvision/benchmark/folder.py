"""Where results go: a new folder, or an empty one that was named. Nothing that exists is written over."""

import csv
import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longvision.errors import UserError
from longvision.files import check_new_folder, written_beside


def make_folder(out: str | None) -> Path:
    """The one named, or a new one here by the time; a second one of the same second gets a number."""
    if out is not None:
        check_new_folder(out, "--out")
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be made ({error.strerror}): give a new folder elsewhere") from error
        return Path(out)
    base = Path(f"benchmarks-{datetime.datetime.now():%Y%m%d-%H%M%S}")
    for number in itertools.count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise AssertionError("numbers do not end")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows, at once: a reader, or a power cut, finds the old file or the new one."""
    if not rows:
        return
    with written_beside(path, overwrite=True) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
