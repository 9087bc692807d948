"""Sets of every source with given files as images, so that each can be damaged: shared by the tests of promises."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.tars import write_tar

SIDE = 32


def coded(number: int, size: tuple[int, int] = (SIDE, SIDE), format: str = "jpeg") -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def folder(root: Path, files: dict[str, Sequence[bytes]]) -> dict[str, Any]:
    for split, contents in files.items():
        for number, content in enumerate(contents):
            _write(root / split / "ab"[number % 2] / f"{number}.jpg", content)
    return {"task": "classification", "source": "folder"}


def parquet(root: Path, files: dict[str, Sequence[bytes]]) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True)
    for split, contents in files.items():
        table = pa.table({"image": pa.array(contents, pa.binary()), "label": [n % 2 for n in range(len(contents))]})
        pq.write_table(table, root / f"{split}.parquet")
    return {"task": "classification", "source": "parquet"}


def shards(root: Path, files: dict[str, Sequence[bytes]]) -> dict[str, Any]:
    """Two tar files a split."""
    for split, contents in files.items():
        for part in range(2):
            numbers = [number for number in range(len(contents)) if number % 2 == part]
            samples = [{"__key__": f"in/{n}", "jpg": contents[n], "cls": "ab"[n // 2 % 2]} for n in numbers]
            write_tar(root / f"{split}-{part:06}.tar", samples)
    return {"task": "classification", "source": "shards"}


def masks(root: Path, files: dict[str, Sequence[bytes]]) -> dict[str, Any]:
    for split, contents in files.items():
        for number, content in enumerate(contents):
            _write(root / "images" / split / f"{number}.jpg", content)
            _write(root / "masks" / split / f"{number}.png", mask())
    return {"task": "segmentation", "source": "masks"}


def coco(root: Path, files: dict[str, Sequence[bytes]]) -> dict[str, Any]:
    for split, contents in files.items():
        for number, content in enumerate(contents):
            _write(root / split / f"{number}.jpg", content)
        images = [
            {"id": n, "file_name": f"{n}.jpg", "width": SIDE, "height": SIDE} for n in range(1, len(contents) + 1)
        ]
        for image, number in zip(images, range(len(contents)), strict=True):
            image["file_name"] = f"{number}.jpg"
        boxes = [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 9, 9], "iscrowd": 0}
            for n in range(1, len(contents) + 1)
        ]
        labels = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
        _write(root / "annotations" / f"instances_{split}.json", json.dumps(labels).encode())
    return {"task": "detection", "source": "coco"}


XML = """<annotation><size><width>{0}</width><height>{0}</height></size><object><name>cell</name><bndbox><xmin>2</xmin>
<ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def voc(root: Path, files: dict[str, Sequence[bytes]]) -> dict[str, Any]:
    for split, contents in files.items():
        names = [f"{split}{number}" for number in range(len(contents))]
        for name, content in zip(names, contents, strict=True):
            _write(root / "JPEGImages" / f"{name}.jpg", content)
            _write(root / "Annotations" / f"{name}.xml", XML.format(SIDE).encode())
        _write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(names).encode())
    return {"task": "detection", "source": "voc"}


SETS = {"folder": folder, "parquet": parquet, "shards": shards, "masks": masks, "coco": coco, "voc": voc}


def mask(classes: int = 2) -> bytes:
    values = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // SIDE % classes).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png")
    return file.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
