"""The rows of gpu.csv: their columns, the table on disk, who is compared with whom, and where a row comes from."""

import csv
import subprocess
from pathlib import Path
from typing import Any

import torch

from longvision.benchmark.case import significant
from longvision.benchmark.provenance import device_name, provenance

FIGURES = ("median_us", "q1_us", "q3_us", "peak_mb", "ratio", "baseline", "status")
ORIGIN = ("device", "driver", "torch", "triton", "cuda", "longvision", "timm", "commit", "date")
COLUMNS = ("what", "model", "size", "tokens", "batch", "dtype", "mode", "peer", *FIGURES, *ORIGIN)
Row = dict[str, str]

# What the column `model` says, by which a target finds the row of a job; a block's with its width.
WIDTHS = {"block Ti": 192, "block S": 384}
VIM, DEIT = "vim_tiny_patch16_224", "deit_tiny_patch16_224"


class Table:
    """Rows on disk, complete after each one; all as text, as they are read back."""

    def __init__(self, path: Path, origin: dict[str, str]) -> None:
        self.path, self.origin = path, origin
        rows = read(path)
        self.others = [row for row in rows if row["device"] != origin["device"]]
        self.rows = [row for row in rows if row["device"] == origin["device"]]

    def start(self) -> None:
        """Anew, with what was measured on other devices left as it is."""
        self.rows = []
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        words = {**self.origin, **row}
        self.rows.append({name: "" if words.get(name) is None else str(words[name]) for name in COLUMNS})
        compare(self.rows)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(self.others + self.rows)
        part.replace(self.path)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compare(rows: list[Row]) -> None:
    """Each row of ours as a multiple of its peer's, of several the best."""
    for row in rows:
        column = "peak_mb" if row["what"] == "memory per image" else "median_us"
        if row["what"] not in ("block", "model", "memory per image") or row["peer"] or not is_ok(row):
            continue
        same = ("what", "size", "batch", "dtype", "mode", *(["model"] if row["what"] == "block" else []))
        rivals = [rival for rival in rows if rival["peer"] and is_ok(rival) and rival[column]]
        rivals = [rival for rival in rivals if all(rival[name] == row[name] for name in same)]
        if rivals and row[column]:
            best = min(rivals, key=lambda rival: float(rival[column]))
            row["ratio"] = str(significant(float(row[column]) / float(best[column]), 3))
            row["baseline"] = best["peer"] if row["what"] == "block" else f"{best['model']}, {best['peer']}"


def is_ok(row: Row) -> bool:
    return row["status"].startswith("ok")


def line(row: Row) -> str:
    names = ("what", "model", "size", "batch", "dtype", "mode", "peer", "status")
    return "  ".join(filter(None, [*(row[name] for name in names), row["median_us"] and f"{row['median_us']} us"]))


def origin(commit: str) -> dict[str, str]:
    """The columns that close every row."""
    known = provenance()
    own = {"device": device_name("cuda"), "driver": driver(), "triton": triton_version(), "cuda": torch.version.cuda}
    return {name: str({**known, **own}.get(name) or "") for name in ORIGIN} | ({"commit": commit} if commit else {})


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().splitlines()[0]
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return ""


def triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__
