"""A Vim and a DeiT of equal size, from scratch on small real sets, with the same head: rows for results/recipes.csv.

Run: python benchmarks/dense.py DIR SEED..., where DIR holds the folders camvid, bccd and chasedb1. The epochs are fewer
than the recipes', so that a run takes minutes on one core, and equal for both.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

import recipes

EPOCHS = {"camvid": 10, "bccd": 5, "chasedb1": 60}
MODELS = {
    "vim_nano_patch4_32": {"patch_size": 8},
    "deit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2},
}


def main(folder: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)  # what rows say of the device
    for seed in seeds:
        for name in EPOCHS:
            for model, args in MODELS.items():
                measure(name, model, args, folder / name, seed)


def measure(name: str, model: str, args: dict[str, int], data: Path, seed: int) -> None:
    command = [sys.executable, "-m", "longvision", "train", "-c", name, "--data.path", str(data), "--seed", str(seed)]
    command += ["--model.name", model, "--model.args", json.dumps(args), "--data.workers", "0"]
    command += ["--trainer.max_epochs", str(EPOCHS[name])]
    start = time.time()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}")
    recipes.main(Path(done.stdout.splitlines()[-1]), round(time.time() - start, 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]])
