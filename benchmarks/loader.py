"""Loading against decoding: images a second of two workers that decode, resize, mirror and pack, beside those of two
processes that do nothing but decode the same files with Pillow.

Both are measured in turn, several times; the row is of the medians. It goes to benchmarks/results/loader.csv.

Run: python benchmarks/loader.py DIR [SIZE], with a folder of images a class in DIR.
"""

import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import torch
from PIL import Image

from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows
from longvision.data.augment import Augment
from longvision.data.config import FolderData

TABLE = Path(__file__).parent / "results" / "loader.csv"
PROCESSES, TIMES, PATCH, TOKENS = 2, 5, 16, 4096


def decode(file: str) -> int:
    with Image.open(file) as image:
        return image.convert("RGB").width


def decoded_per_second(files: list[str]) -> float:
    with get_context("fork").Pool(PROCESSES) as pool:
        pool.map(decode, files[:PROCESSES])  # they are there
        began = time.perf_counter()
        pool.map(decode, files, chunksize=16)
        return len(files) / (time.perf_counter() - began)


def loaded_per_second(data) -> float:
    """From when the first pack is there, as a training that has begun sees it."""
    loader = iter(data.train_dataloader())
    images, last = 0, len(next(loader)[0])
    began = time.perf_counter()
    for packed, _ in loader:
        images += len(packed)
    return (images + last / 2) / (time.perf_counter() - began)


def main(folder: str, size: int = 224) -> None:
    torch.set_num_threads(1)
    whole = Augment(crop_scale=None)  # else most of the time goes into enlarging crops
    data = FolderData(
        folder, size=size, pack=True, patch=PATCH, tokens=TOKENS, workers=PROCESSES, augment=whole
    ).build()
    data.setup("fit")
    images = data.images("train")
    files = [str(images.file_of(row)) for row in range(len(images))]
    pairs = [(decoded_per_second(files), loaded_per_second(data)) for _ in range(TIMES)]
    plain, loaded = (statistics.median(numbers) for numbers in zip(*pairs, strict=True))
    height, width = (int(side) for side in data.shapes_N2.mean(0))
    row = {
        "files": f"{len(files)} of {Path(folder).name}, {width}x{height} on average",
        "size": size,
        "processes": PROCESSES,
        "pillow_images_per_s": round(plain, 1),
        "loaded_images_per_s": round(loaded, 1),
        "share": round(statistics.median(loaded / plain for plain, loaded in pairs), 3),
        "device": device_name("cpu"),
        **provenance(),
    }
    print(row)
    write_rows(TABLE, [*read_rows(TABLE), row])


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
