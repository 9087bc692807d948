"""EfficientViT without its least important channels: trained on the embedded digits at 64 pixels, pruned to several
shares, and tested without further training.

A row a share for benchmarks/results/pruning.csv.

Run: python benchmarks/pruning.py [RUNS]
"""

import re
import sys
from pathlib import Path
from typing import Any

from trainings import Training, command, origin

from longvision.benchmark.rows import write_rows

TABLE = Path(__file__).parent / "results" / "pruning.csv"
KEPT = (0.7, 0.4, 0.1)
OPTIONS = {"model.drop_path": 0, "data.size": 64, "model.warmup_epochs": 1, "trainer.max_epochs": 6}
TRAINING = Training("EfficientViT", {"name": "efficientvit_m0"}, "digits", OPTIONS, seed=0)
WHOLE = {"queries and keys": "100", "values": "100", "MLPs": "100"}  # per cent


def pruned(run: Path, keep: float) -> tuple[Path, str, dict[str, str]]:
    """-> the folder, its parameters, and what is left of each kind of channels in per cent."""
    folder = run.with_name(f"{run.name}-{keep}")
    said = command("prune", str(run), "--keep", str(keep), "--out", str(folder))
    left = dict(re.findall(r"(MLPs|queries and keys|values) (\d+)%", said))
    return folder, _number(r"after: +([\d,]+) parameters", said), left


def row_of(model: Path, keep: float, parameters: str, left: dict[str, str]) -> dict[str, Any]:
    accuracy = _number(r"^accuracy +([\d.]+) %", command("validate", str(model), "--split", "test"))
    shares = {name: f"{int(left[name]) / 100:.2f}" for name in WHOLE}
    return {"keep": keep, "parameters": parameters, **shares, "accuracy": round(float(accuracy) / 100, 4), **origin()}


def _number(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, text
    return match[1].replace(",", "")


def main(runs: str = "runs") -> None:
    run = TRAINING.run(runs)
    found = {keep: pruned(run, keep) for keep in KEPT}
    whole = _number(r"([\d,]+) parameters", (run / "README.md").read_text())
    rows = [row_of(run, 1.0, whole, WHOLE), *(row_of(folder, keep, *rest) for keep, (folder, *rest) in found.items())]
    write_rows(TABLE, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
