"""Small sets in every format, beside what their images and labels are: kept from before they were written, so that no
reader of the package has a part in it."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.tars import write_tar

SIDE = 32
CLASSES = ["cat", "dog"]
COUNTS = {"train": 8, "val": 4, "test": 4}
CLOCKWISE = 6  # the orientation of an image that is stored a quarter turn to the left


@dataclass(frozen=True)
class Example:
    """One image: uint8 (H, W, 3), upright; its file, or the bytes of one; its label: a class number, a class map
    (H, W), or (boxes, class numbers, masks or None)."""

    pixels_HWC: np.ndarray
    file: Path | bytes
    label: Any


Known = dict[str, list[Example]]  # split -> its images in the order of their names


def encoded(number: int, random: np.random.Generator) -> tuple[np.ndarray, str, bytes]:
    """An upright image, and the file that shows it: of another kind for each number in turn."""
    pixels_HWC = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    file, suffix, options = io.BytesIO(), "png", {}
    stored = Image.fromarray(pixels_HWC)
    match number % 4:
        case 1:  # a camera held upright
            suffix, exif = "jpg", Image.Exif()
            exif[0x0112] = CLOCKWISE
            options = {"exif": exif, "quality": 90}
        case 2:  # grey
            stored = Image.fromarray(pixels_HWC[..., 0])
            pixels_HWC = pixels_HWC[..., :1].repeat(3, axis=2)
        case 3:  # seen through on its left half
            alpha_HW = np.full((SIDE, SIDE), 255, np.uint8)
            alpha_HW[:, : SIDE // 2] = 0
            stored.putalpha(Image.fromarray(alpha_HW))
            pixels_HWC = np.where(alpha_HW[..., None] == 0, np.uint8(255), pixels_HWC)
    stored.save(file, {"png": "PNG", "jpg": "JPEG"}[suffix], **options)
    if suffix == "jpg":  # what it lost, it lost here
        pixels_HWC = np.rot90(np.asarray(Image.open(file)), -1)
    return np.ascontiguousarray(pixels_HWC), suffix, file.getvalue()


def _written(number: int, random: np.random.Generator, stem: Path) -> tuple[np.ndarray, Path]:
    pixels_HWC, suffix, coded = encoded(number, random)
    path = stem.with_suffix(f".{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(coded)
    return pixels_HWC, path


def folder(root: Path, random: np.random.Generator) -> Known:
    known: Known = {split: [] for split in COUNTS}
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            for number in range(count // 2):
                known[split].append(
                    Example(*_written(number + 2 * label, random, root / split / name / f"{number}"), label)
                )
    return known


def parquet(root: Path, random: np.random.Generator) -> Known:
    import pyarrow
    import pyarrow.parquet

    known: Known = {}
    for split, count in COUNTS.items():
        made = [encoded(number, random) for number in range(count)]
        known[split] = [Example(pixels, coded, number % 2) for number, (pixels, _, coded) in enumerate(made)]
        columns = {
            "image": [{"bytes": one.file, "path": None} for one in known[split]],
            "label": [CLASSES[one.label] for one in known[split]],
        }
        pyarrow.parquet.write_table(pyarrow.table(columns), root / f"{split}-00000-of-00001.parquet")
    return known


def shards(root: Path, random: np.random.Generator) -> Known:
    """Numbers as labels, and a file with the names; in .cls and .json files in turn."""
    (root / "classes.txt").write_text("\n".join(CLASSES))
    known: Known = {}
    for split, count in COUNTS.items():
        made = [encoded(number, random) for number in range(count)]
        known[split] = [Example(pixels, coded, number % 2) for number, (pixels, _, coded) in enumerate(made)]
        samples = [
            {"__key__": f"{number:04}", suffix: coded,
             **({"json": json.dumps({"label": number % 2})} if number % 4 > 1 else {"cls": str(number % 2)})}
            for number, (_, suffix, coded) in enumerate(made)
        ]  # fmt: skip
        for part in range(2):
            half = count // 2
            write_tar(root / split / f"{part:04}.tar", samples[part * half : (part + 1) * half])
    return known


def masks(root: Path, random: np.random.Generator) -> Known:
    """With a class file of colours, and masks as numbers, colours, and a palette of another order in turn."""
    colours = np.array([[0, 0, 255], [255, 128, 0]], np.uint8)
    (root / "classes.txt").write_text("".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in zip(CLASSES, colours)))
    known: Known = {split: [] for split in COUNTS}
    for split, count in COUNTS.items():
        (root / "masks" / split).mkdir(parents=True)
        for number in range(count):
            pixels, path = _written(number, random, root / "images" / split / f"{number}")
            mask_HW = random.integers(0, 2, (SIDE, SIDE), dtype=np.uint8)
            drawn = Image.fromarray(colours[mask_HW])
            if number % 2:
                drawn = Image.fromarray(1 - mask_HW, "P")
                drawn.putpalette(colours[::-1].tobytes())
            drawn.save(root / "masks" / split / f"{number}.png")
            known[split].append(Example(pixels, path, mask_HW))
    return known


def _objects(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of whole pixels (2, 4), class numbers, and masks that fill the boxes but for a corner."""
    corners = random.integers(1, 8, (2, 2))
    boxes_N4 = np.concatenate([corners, corners + random.integers(8, 20, (2, 2))], 1)
    masks_NHW = np.zeros((2, SIDE, SIDE), bool)
    for mask_HW, (left, top, right, bottom) in zip(masks_NHW, boxes_N4):
        mask_HW[top:bottom, left:right] = True
        mask_HW[top : top + 2, left : left + 2] = False
    return boxes_N4.astype(np.float32), np.array([0, 1]), masks_NHW


def coco(root: Path, random: np.random.Generator) -> Known:
    """Category ids that are no class numbers, in another order than the names'."""
    ids = {"cat": 9, "dog": 17}
    (root / "annotations").mkdir(parents=True)
    known: Known = {split: [] for split in COUNTS}
    for split, count in COUNTS.items():
        images, annotations = [], []
        for number in range(count):
            pixels, path = _written(number, random, root / split / f"{number}")
            boxes_N4, labels_N, masks_NHW = _objects(random)
            known[split].append(Example(pixels, path, (boxes_N4, labels_N, masks_NHW)))
            images.append({"id": 500 - number, "file_name": path.name, "width": SIDE, "height": SIDE})
            for (left, top, right, bottom), label, mask_HW in zip(boxes_N4.tolist(), labels_N, masks_NHW):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": 500 - number, "category_id": ids[CLASSES[label]],
                     "bbox": [left, top, right - left, bottom - top], "area": int(mask_HW.sum()), "iscrowd": 0,
                     "segmentation": {"size": [SIDE, SIDE], "counts": run_lengths(mask_HW)}}
                )  # fmt: skip
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return known


def run_lengths(mask_HW: np.ndarray) -> list[int]:
    """Column by column, beginning with how many are 0."""
    flat = np.concatenate([[0], mask_HW.T.ravel(), [2]])
    borders = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], borders]))
    return [int(count) for count in counts]


def voc(root: Path, random: np.random.Generator) -> Known:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    known: Known = {split: [] for split in COUNTS}
    for split, count in COUNTS.items():
        for number in range(count):
            pixels, path = _written(number, random, root / "JPEGImages" / f"{split}{number}")
            boxes_N4, labels_N, _ = _objects(random)
            known[split].append(Example(pixels, path, (boxes_N4, labels_N, None)))
            objects = "".join(
                f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
                f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
                for (left, top, right, bottom), label in zip(boxes_N4.astype(int).tolist(), labels_N)
            )
            (root / f"Annotations/{split}{number}.xml").write_text(
                f"<annotation><filename>{path.name}</filename><size><width>{SIDE}</width><height>{SIDE}</height>"
                f"<depth>3</depth></size>{objects}</annotation>"
            )
        names = "".join(f"{split}{number}\n" for number in range(count))
        (root / f"ImageSets/Main/{split}.txt").write_text(names)
    return known


WRITERS: dict[str, Callable[[Path, np.random.Generator], Known]] = {
    "folder": folder,
    "parquet": parquet,
    "shards": shards,
    "masks": masks,
    "coco": coco,
    "voc": voc,
}
