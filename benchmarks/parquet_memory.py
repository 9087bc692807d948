"""Anonymous memory of a rank that trains on 2 GB of Parquet: benchmarks/results/parquet_memory.csv.

Each case is a process of its own: a training step of Vim-Ti first, which says what the model takes; then the set is
opened, as a run does, and an epoch of it is loaded. The first case writes the cache, the others map it.
Run: python benchmarks/parquet_memory.py [FOLDER]
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
IMAGES, SIDE = 30_000, 240  # of 68 KB each
CASES = [("first", 0), ("again", 0), ("again", 2)]


def main() -> None:
    from longvision.benchmark.rows import write_rows

    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        write_set(Path(folder, "set"))
        os.environ["LONGVISION_CACHE"] = f"{folder}/cache"
        rows = [json.loads(subprocess.check_output([sys.executable, __file__, "--case", *map(str, case), folder]))
                for case in CASES]  # fmt: skip
    write_rows(ROOT / "benchmarks/results/parquet_memory.csv", rows)


def write_set(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir()
    coded = []
    for _ in range(50):
        file = io.BytesIO()
        noise_HWC = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise_HWC).save(file, "JPEG", quality=95)
        coded.append(file.getvalue())
    for name, count in (("train-0", IMAGES // 2), ("train-1", IMAGES // 2), ("val", 100)):
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        with pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd", use_dictionary=False) as writer:
            for start in range(0, count, 100):  # a row group of 100, as `datasets` writes images
                images = [coded[row % 50] + random.bytes(8) for row in range(start, start + 100)]  # no two are the same
                writer.write(pa.table({"image": images, "label": list(range(100))}, schema))


def measure(state: str, workers: int, folder: str) -> None:
    import timm
    import torch

    import longvision  # noqa: F401
    from longvision.benchmark.provenance import device_name, provenance
    from longvision.data import DataModule, ParquetData

    assert DataModule  # Lightning and torchvision are loaded
    model = timm.create_model("vim_tiny_patch16_224", num_classes=100)
    model(torch.zeros(2, 3, 224, 224)).sum().backward()
    base, watch = anonymous(os.getpid()), Watch()
    start = time.perf_counter()
    data = ParquetData(f"{folder}/set", size=32, workers=workers).build()
    data.setup("fit")
    assert data.fingerprint.images
    opened = time.perf_counter()
    images = sum(len(labels_B) for _, labels_B in data.train_dataloader())
    seconds = time.perf_counter() - opened
    watch.ends.set()
    size = sum(file.stat().st_size for file in Path(folder, "set").iterdir())
    row = {
        "cache": state,
        "workers": workers,
        "set_mb": size >> 20,
        "model_mb": base >> 20,
        "above_model_mb": (watch.most - base) >> 20,
        "worker_above_model_mb": (watch.most_of_worker - base) >> 20 if workers else "",
        "open_s": round(opened - start, 1),
        "images_per_s": round(images / seconds),
        "device": f"{torch.get_num_threads()} threads, {device_name('cpu')}",
        **provenance(),
    }
    print(json.dumps(row))


class Watch:
    """The most anonymous memory of this process, and of one of its workers, from now until `ends`."""

    def __init__(self) -> None:
        self.most = self.most_of_worker = 0
        self.ends = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        own = os.getpid()
        while not self.ends.wait(0.05):
            self.most = max(self.most, anonymous(own))
            for task in Path(f"/proc/{own}/task").iterdir():
                with contextlib.suppress(OSError):  # it has ended
                    for child in (task / "children").read_text().split():
                        self.most_of_worker = max(self.most_of_worker, anonymous(int(child)))


def anonymous(process: int) -> int:
    """Bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    if "--case" in sys.argv:
        measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
