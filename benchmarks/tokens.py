"""Accuracy against tokens: a small NaViT and a Vim of as many blocks and channels train in packs on the embedded digits
of every shape, and are shown the test images at more and at fewer tokens.

A row for each model and number of tokens for benchmarks/results/tokens.csv; a model whose rows are there is not
trained again. docs/images/navit_tokens.png is the curve that the command draws of NaViT.

Run: python benchmarks/tokens.py [RUNS]
"""

import json
import sys
from pathlib import Path
from typing import Any

from trainings import Training, command, origin

from longvision.benchmark.rows import read_rows, write_rows

TABLE = Path(__file__).parent / "results" / "tokens.csv"
TOKENS = (4, 9, 16, 25, 36, 49, 64, 100, 144)
SHAPE = {"embed_dim": 96, "depth": 3, "positions": "fractional_fourier"}
MODELS = {
    "NaViT": {
        "name": "navit_tiny_patch16", **SHAPE, "patch_size": 4, "num_heads": 3, "mlp_ratio": 2, "img_size": 32
    },
    "Vim": {"name": "vim_nano_patch4_32", **SHAPE},
}  # fmt: skip


def rows_of(training: Training, runs: str) -> list[dict[str, Any]]:
    run = training.run(runs)
    out = run.with_name(f"{run.name}-tokens")
    command("validate", str(run), "--split", "test", "--tokens", ",".join(map(str, TOKENS)), "--out", str(out))
    return [
        {
            "model": training.model,
            "args": json.dumps(training.args),
            "seed": training.seed,
            "tokens": row["tokens"],
            "accuracy": round(float(row["accuracy"]), 4),
            "loss": round(float(row["loss"]), 4),
            **origin(),
        }
        for row in read_rows(out / "tokens.csv")
    ]


def main(runs: str = "runs") -> None:
    for model, args in MODELS.items():
        rows = read_rows(TABLE)
        if model not in {row["model"] for row in rows}:
            training = Training(model, args, "mixed_digits", {"trainer.max_epochs": 15}, seed=0)
            write_rows(TABLE, [*rows, *rows_of(training, runs)])


if __name__ == "__main__":
    main(*sys.argv[1:])
