"""A Vim and a DeiT of equal size, from scratch on small real sets with the same head: rows for results/recipes.csv.

Run: python benchmarks/dense.py DIR SEED [SEED ...], where DIR holds the folders camvid, chasedb1 and bccd. Epochs are
such that a run takes at most 8 minutes on one core: equal ones, but on CHASEDB1, where attention over 15,000 tokens
leaves the DeiT a part of the Vim's epochs in the same time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import recipes

EQUAL_DEIT = {"patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}
MODELS = {"vim": [], "deit": ["--model.name", "deit_tiny_patch16_224", "--model.args", json.dumps(EQUAL_DEIT)]}
EPOCHS = {
    ("camvid", "vim"): 20,
    ("camvid", "deit"): 20,
    ("chasedb1", "vim"): 20,
    ("chasedb1", "deit"): 4,
    ("bccd", "vim"): 8,
    ("bccd", "deit"): 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path)
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=list(MODELS))
    asked = parser.parse_args()
    for seed in asked.seeds:
        for name, model in EPOCHS:
            if model in asked.only:
                measure(name, model, asked.dir / name, seed)


def measure(name: str, model: str, data: Path, seed: int) -> None:
    command = [sys.executable, "-m", "longvision", "train", "-c", name, "--data.path", str(data), "--seed", str(seed)]
    command += [*MODELS[model], "--trainer.max_epochs", str(EPOCHS[name, model]), "--data.workers", "0"]
    start = time.time()
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} with {model} ended with {done.returncode}")
    recipes.main(Path(done.stdout.splitlines()[-1]), round(time.time() - start, 1))


if __name__ == "__main__":
    main()
