"""A Vim and a DeiT of equal size, from scratch on small real sets, with the same head: rows for results/recipes.csv.

Run: python benchmarks/dense.py DIR SEED..., where DIR holds the folders camvid, chasedb1 and bccd. The epochs are such
that a run takes less than 8 minutes on one core, and equal within a set. At 960x999 pixels a step of the DeiT with
patches of 8 takes 35 s on one core (the Vim's 3.4 s): it is compared with patches of 16, and the Vim's patches of 8,
the recipe's, stand beside them.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import recipes

DEIT = {"embed_dim": 128, "depth": 3, "num_heads": 2}
EPOCHS = {"camvid": 10, "bccd": 5, "chasedb1": 10}
RUNS: list[tuple[str, str, dict[str, int]]] = [
    ("camvid", "vim_nano_patch4_32", {"patch_size": 8}),
    ("camvid", "deit_tiny_patch16_224", {"patch_size": 8, **DEIT}),
    ("bccd", "vim_nano_patch4_32", {"patch_size": 8}),
    ("bccd", "deit_tiny_patch16_224", {"patch_size": 8, **DEIT}),
    ("chasedb1", "vim_nano_patch4_32", {"patch_size": 16}),
    ("chasedb1", "deit_tiny_patch16_224", {"patch_size": 16, **DEIT}),
    ("chasedb1", "vim_nano_patch4_32", {"patch_size": 8}),
]


def main(folder: Path, seeds: list[int]) -> None:
    for seed in seeds:
        for name, model, args in RUNS:
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
