"""One row a run for benchmarks/results/recipes.csv: what a recipe reached, in what time, on what.

Run: python benchmarks/recipes.py RUN SECONDS, after /usr/bin/time or the shell's `time` gave the seconds.
"""

import csv
import json
import math
import platform
import sys
from pathlib import Path

import lightning
import safetensors
import timm
import torch
import yaml

import longvision
from longvision.benchmark.provenance import device_name, provenance
from longvision.files import read_metadata

TABLE = Path(__file__).parent / "results" / "recipes.csv"


def main(run: Path, seconds: float) -> None:
    description = read_metadata(run / "model.safetensors")
    config = yaml.safe_load((run / "config.yaml").read_text())
    metrics = {name: round(value, 4) for name, value in description["metrics"].items()}
    row = {
        "task": description["task"],
        "source": config["source"],
        "data": Path(config["data"].get("path", "")).name,  # of a set that does not come with the package
        "model": description["architecture"],
        "args": json.dumps(config["model"].get("args") or {}),
        "parameters": sum(math.prod(shape) for shape in _shapes(run / "model.safetensors")),
        "epochs": config["trainer"]["max_epochs"],
        "seed": config["seed"],
        "seconds": seconds,
        "metrics": json.dumps(metrics),
        "device": f"{torch.get_num_threads()} threads, {device_name('cpu')}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "longvision": longvision.__version__,
        "commit": provenance()["commit"],
    }
    is_new = not TABLE.exists()
    with TABLE.open("a", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        if is_new:
            table.writeheader()
        table.writerow(row)


def _shapes(weights: Path) -> list[list[int]]:
    with safetensors.safe_open(weights, "pt") as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 not a dict


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
