"""Five ways of fine-tuning, on the embedded digits: a base learns 0 to 4, and is tuned to 5 to 9, for three seeds.

A row a training for benchmarks/results/memory.csv; those whose row is there are not run again. With `cost` it counts
parameters and multiply-adds instead, for benchmarks/results/memory_cost.csv.

Run: python benchmarks/memory.py vit_nano_patch4_32 | vim_nano_patch4_32 | cost
"""

import copy
import csv
import fcntl
import math
import sys
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import longvision  # noqa: F401, which registers the models
from longvision.benchmark.provenance import device_name, provenance
from longvision.data.sources.digits import load_digits_split
from longvision.models.cost import cost_of
from longvision.models.memory import FINETUNE, add_memory, fine_tune

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH, SEEDS = 16, 64, 3
BASE_EPOCHS, EPOCHS, RATE, CLIP, WARMUP = 15, 8, 0.1, 1.0, 5


def digits(split: str, first: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 16, 16) and (N,) of the five classes from `first` on, numbered from 0."""
    scans, labels = load_digits_split(split)
    chosen = (labels >= first) & (labels < first + 5)
    images = torch.from_numpy(scans[chosen]).float()[:, None] / 255
    images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    return (images - 0.3) / 0.35, torch.from_numpy(labels[chosen]).long() - first


def train(model: nn.Module, first: int, epochs: int, optimizer: torch.optim.Optimizer) -> float:
    """With a warm-up of a few steps, a cosine and clipped gradients -> seconds."""
    images, labels = digits("train", first)
    steps, step, began = epochs * math.ceil(len(images) / BATCH), 0, time.perf_counter()
    rate = optimizer.param_groups[0]["lr"]
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            rising, progress = (step + 1) / (WARMUP + 1), max(0.0, (step - WARMUP) / (steps - WARMUP))
            optimizer.param_groups[0]["lr"] = rate * min(rising, 0.5 * (1 + math.cos(math.pi * progress)))
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1
    return time.perf_counter() - began


@torch.inference_mode()
def accuracy(model: nn.Module, first: int) -> float:
    images, labels = digits("test", first)
    return round(float((model.eval()(images).argmax(1) == labels).float().mean()), 4)


def rows_of(name: str, seed: int, there: set[tuple[str, str, int]]):
    """A row for each way; all begin with the same base."""
    ways = [way for way in FINETUNE if (name, way, seed) not in there]
    if not ways:
        return
    torch.manual_seed(seed)
    base = timm.create_model(name, num_classes=5, in_chans=1, img_size=SIZE)
    train(base, 0, BASE_EPOCHS, torch.optim.AdamW(base.parameters(), 2e-3, weight_decay=0.05))
    before = accuracy(base, 0)
    for way in ways:
        torch.manual_seed(seed)
        model = fine_tune(copy.deepcopy(base), 5, way)
        if way == "full":
            model.reset_classifier(5)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        seconds = train(model, 5, EPOCHS, torch.optim.SGD(trained, RATE, momentum=0.9))
        yield {
            "model": name,
            "way": way,
            "seed": seed,
            "trained_parameters": sum(parameter.numel() for parameter in trained),
            "accuracy": accuracy(model, 5),
            "base_accuracy": before,
            "base_accuracy_after": accuracy(model.base, 0) if way == "memory_mask" else "",
            "seconds": round(seconds, 1),
            "epochs": EPOCHS,
            "rate": RATE,
            "device": f"{torch.get_num_threads()} threads, {device_name('cpu')}",
            **provenance(),
        }


def costs():
    """At 224 pixels with heads for 1000 classes: as it is, with memory, and with tasks beside it."""
    for name in ("vit_base_patch16_224", "vim_tiny_patch16_224", "vim_base_patch16_224"):
        for what, tasks in (("base", 0), ("memory", 1), ("memory_mask", 1), ("memory_mask", 10)):
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=1000)
                for _ in range(tasks):
                    model = add_memory(model, 1000, mask=what == "memory_mask")
            cost = cost_of(model, 224, 224)
            yield {"model": name, "way": what, "tasks": tasks, "parameters": cost.parameters, "macs": cost.macs}


def write(table: Path, row: dict) -> None:
    """Append, whoever else does."""
    with table.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        rows = csv.DictWriter(file, list(row), lineterminator="\n")
        if not table.stat().st_size:
            rows.writeheader()
        rows.writerow(row)


def main(what: str) -> None:
    if what == "cost":
        (RESULTS / "memory_cost.csv").unlink(missing_ok=True)
        for row in costs():
            write(RESULTS / "memory_cost.csv", row)
        return
    table = RESULTS / "memory.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    there = {(row["model"], row["way"], int(row["seed"])) for row in rows}
    for seed in range(SEEDS):
        for row in rows_of(what, seed, there):
            print(row, flush=True)
            write(table, row)


if __name__ == "__main__":
    main(sys.argv[1])
