"""Packing against padding: images a second and accuracy on embedded digits of every shape, for three seeds.

Both train on the same images at the same sizes in the same steps; one has them in a pack, the other each on a canvas
that the largest fit into. A row a training for benchmarks/results/packing.csv; those whose row is there are not
run again.

Run: python benchmarks/packing.py [EPOCHS [untimed]]; `untimed`, beside other work, leaves the columns of time empty.
"""

import math
import sys
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import longvision  # noqa: F401, which registers the models
from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows
from longvision.data.config import MixedDigitsData
from longvision.data.transforms.packing import PackedTransforms

TABLE = Path(__file__).parent / "results" / "packing.csv"
MODEL, PATCH, SIZE, SIZES, TOKENS = "vim_nano_patch4_32", 4, 24, (16, 28), 1024
RATE, DECAY, WARMUP, CLIP = 2e-3, 0.1, 0.08, 1.0


class PaddedTransforms(PackedTransforms):
    """The same images, each in the upper left corner of a black canvas: (B, C, H, W)."""

    canvas = 0  # its side, pixels

    def collate(self, samples):
        images, labels = zip(*samples, strict=True)
        labels = [label[0] if isinstance(label, tuple) else label for label in labels]
        return torch.stack([self.padded(image_CHW) for image_CHW in images]), torch.tensor(labels)

    def padded(self, image_CHW: Tensor) -> Tensor:
        """Black is no zero once it is normalised: evaluation's images are."""
        black = 0 if image_CHW.dtype == torch.uint8 else -self.spec.mean[0] / self.spec.std[0]
        right, below = self.canvas - image_CHW.shape[2], self.canvas - image_CHW.shape[1]
        return F.pad(image_CHW, (0, right, 0, below), value=black)

    def mix(self, batch):
        return self.spec.normalised(batch[0]), batch[1]


def data_of(way: str, seed: int):
    torch.manual_seed(seed)
    sizes = {"size": SIZE, "sizes": SIZES, "sizes_by": "uniform"}
    data = MixedDigitsData(pack=True, patch=PATCH, tokens=TOKENS, workers=0, **sizes).build()
    data.setup("fit")
    if way == "padding":
        data.transforms = PaddedTransforms(data.augment, data.input, len(data.classes))
        longest = (data.shapes_N2.max(1) / data.shapes_N2.min(1)).max()
        data.transforms.canvas = PATCH * math.ceil(max(SIZES) * longest**0.5 / PATCH)
    return data


def trained(data, seed: int, epochs: int) -> tuple[torch.nn.Module, int, float]:
    """-> the model, the images that it was trained on, and the seconds that they took."""
    torch.manual_seed(seed)
    model = timm.create_model(MODEL, num_classes=10, in_chans=1, img_size=SIZE, drop_path_rate=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    loader = data.train_dataloader()
    steps, step, images, began = epochs * len(loader), 0, 0, time.perf_counter()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            optimizer.param_groups[0]["lr"] = RATE * rate(step / steps)
            x, labels_B = data.transforms.mix(batch)
            F.cross_entropy(model(x), labels_B, label_smoothing=0.1).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            step, images = step + 1, images + len(labels_B)
    return model, images, time.perf_counter() - began


def rate(done: float) -> float:
    """A linear warm-up, then half a cosine to 0."""
    return done / WARMUP if done < WARMUP else (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))) / 2


@torch.inference_mode()
def accuracy(model: torch.nn.Module, data) -> float:
    model.eval()
    right = [(model(x).argmax(1) == labels_B) for x, labels_B in data.test_dataloader()]
    return float(torch.cat(right).float().mean())


def row_of(way: str, seed: int, epochs: int, timed: bool) -> dict:
    data = data_of(way, seed)
    model, images, seconds = trained(data, seed, epochs)
    return {
        "way": way,
        "seed": seed,
        "epochs": epochs,
        "images_per_s": round(images / seconds, 1) if timed else "",
        "seconds": round(seconds, 1) if timed else "",
        "accuracy": round(accuracy(model, data), 4),
        "model": MODEL,
        "tokens": TOKENS if way == "packing" else f"canvas {data.transforms.canvas}x{data.transforms.canvas}",
        "device": f"{torch.get_num_threads()} threads, {device_name('cpu')}",
        **provenance(),
    }


def main(epochs: str = "25", untimed: str = "") -> None:
    rows = read_rows(TABLE)
    there = {(row["way"], row["seed"], row["epochs"]) for row in rows}
    for seed in range(3):
        for way in ("packing", "padding"):
            if (way, str(seed), epochs) in there:
                continue
            rows.append(row_of(way, seed, int(epochs), not untimed))
            print(rows[-1], flush=True)
            write_rows(TABLE, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
