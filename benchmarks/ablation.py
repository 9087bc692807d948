"""The paper's ablation (tables 4 and 6 of arXiv 2401.09417) in small: one factor at a time, and a DeiT of equal size.

Each on CIFAR-10 for one epoch, with three seeds; a row a run for benchmarks/results/ablation.csv. Runs whose row is
there are not run again.

Run: python benchmarks/ablation.py DIR [RUNS], with CIFAR-10 in Parquet files in DIR.
"""

import sys
from pathlib import Path

from trainings import Training, run_all

TABLE = Path(__file__).parent / "results" / "ablation.csv"
SEEDS = range(3)
VIM = {"name": "vim_nano_patch4_32", "embed_dim": 64, "direction": "ssm_conv", "cls_token": "middle"}
DEIT = {"name": "deit_tiny_patch16_224", "patch_size": 4, "embed_dim": 66, "depth": 3, "num_heads": 3}
OPTIONS = {"model.lr": 3e-3, "model.warmup_epochs": 0.1, "trainer.max_epochs": 1}
FACTORS = {
    "direction": ["none", "sequence", "layer", "ssm"],
    "cls_token": ["none", "head", "double"],
}


def models() -> dict[str, dict]:
    """By name; the first is what each of the others differs from in one word."""
    others = {f"{factor}={value}": {**VIM, factor: value} for factor, values in FACTORS.items() for value in values}
    return {"direction=ssm_conv, cls_token=middle": VIM, **others, "DeiT": DEIT}


def main(data: str, runs: str = "runs") -> None:
    options = {**OPTIONS, "data.path": data}
    trainings = [Training(name, args, "parquet", options, seed) for seed in SEEDS for name, args in models().items()]
    run_all(TABLE, trainings, runs)


if __name__ == "__main__":
    main(*sys.argv[1:])
