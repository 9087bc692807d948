"""The paper's ablation (tables 4 and 6 of arXiv 2401.09417) in small: one factor at a time, and a DeiT of equal size.

Each on CIFAR-10 for one epoch, with three seeds; a row a run for benchmarks/results/ablation.csv. Runs whose row is
there are not run again.

Run: python benchmarks/ablation.py DIR [RUNS], with CIFAR-10 in Parquet files in DIR.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows
from longvision.files import read_metadata

TABLE = Path(__file__).parent / "results" / "ablation.csv"
SEEDS = range(3)
VIM = {"name": "vim_nano_patch4_32", "embed_dim": 64, "direction": "ssm_conv", "cls_token": "middle"}
DEIT = {"name": "deit_tiny_patch16_224", "patch_size": 4, "embed_dim": 66, "depth": 3, "num_heads": 3}
RECIPE = {"model.lr": 3e-3, "model.warmup_epochs": 0.1, "trainer.max_epochs": 1}
FACTORS = {
    "direction": ["none", "sequence", "layer", "ssm"],
    "cls_token": ["none", "head", "double"],
}


def models() -> dict[str, dict]:
    """By name; the first is what each of the others differs from in one word."""
    others = {f"{factor}={value}": {**VIM, factor: value} for factor, values in FACTORS.items() for value in values}
    return {"direction=ssm_conv, cls_token=middle": VIM, **others, "DeiT": DEIT}


def row_of(name: str, model: dict, seed: int, data: str, runs: str) -> dict:
    arguments = {f"model.args.{key}": value for key, value in model.items() if key != "name"}
    options = {"model.name": model["name"], **arguments, **RECIPE, "data.path": data}
    words = ["--seed", str(seed), "--runs", runs]
    words += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "longvision", "train", "-c", "parquet", *words]
    began = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    metrics = read_metadata(Path(done.stdout.splitlines()[-1]) / "model.safetensors")["metrics"]
    return {
        "model": name,
        "args": json.dumps(model),
        "seed": seed,
        "accuracy": round(metrics["test/accuracy"], 4),
        "loss": round(metrics["test/loss"], 4),
        "seconds": round(time.monotonic() - began, 1),
        "device": f"{torch.get_num_threads()} threads, {device_name('cpu')}",
        **provenance(),
    }


def main(data: str, runs: str = "runs") -> None:
    rows = read_rows(TABLE)
    there = {(row["model"], int(row["seed"])) for row in rows}
    for seed in SEEDS:
        for name, model in models().items():
            if (name, seed) in there:
                continue
            rows.append(row_of(name, model, seed, data, runs))
            write_rows(TABLE, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
