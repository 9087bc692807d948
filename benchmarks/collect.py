"""The rows of `longvision benchmark` that the documentation quotes: results/{models,ops}.csv here, and its charts.

Run: python benchmarks/collect.py FOLDER..., with the folders that the command made; what they hold replaces the rows of
the same device. A chart is drawn for each device.
Without folders the charts alone are drawn anew.
"""

import csv
import sys
from pathlib import Path

from longvision.benchmark.chart import draw_models
from longvision.benchmark.table import label

ROOT = Path(__file__).parent.parent
NUMBERS = ("requested", "batch", "threads", "ms_median", "ms_q1", "ms_q3", "peak_mb")  # what the chart reads
LINES = ("vim_tiny_patch16_224", "deit_tiny_patch16_224")  # over all sizes; the others are points beside them


def main(folders: list[Path]) -> None:
    for name in ("models.csv", "ops.csv") if folders else ():
        rows = [row for folder in folders if (folder / name).exists() for row in read(folder / name)]
        if not rows:
            continue
        devices = {row["device"] for row in rows}
        rows = [row for row in read(ROOT / "benchmarks/results" / name) if row["device"] not in devices] + rows
        with (ROOT / "benchmarks/results" / name).open("w", newline="") as file:
            columns = dict.fromkeys(column for row in rows for column in row)  # older folders have fewer
            table = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    models = [with_numbers(row) for row in read(ROOT / "benchmarks/results/models.csv") if row["dtype"] == "float32"]
    models = [row for row in models if not row.get("head")]
    models = [row for row in models if row["baseline"] in LINES or row["model"] not in LINES]
    names = list(dict.fromkeys(map(label, models)))
    for device in dict.fromkeys(row["device"] for row in models):
        maker, instructions = device.partition("(")[0].split()[0], device.rpartition("(")[2].rstrip(")")
        for mode in ("infer", "train"):
            rows = [row for row in models if (row["mode"], row["device"]) == (mode, device)]
            draw_models(rows, ROOT / f"docs/images/benchmark-{mode}-{maker}-{instructions}.png".lower(), names)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def with_numbers(row: dict[str, str]) -> dict[str, object]:
    numbers = {name: float(row[name]) if row[name] else None for name in NUMBERS}
    return {**row, **numbers, **{name: int(numbers[name] or 0) for name in ("requested", "batch", "threads")}}


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
