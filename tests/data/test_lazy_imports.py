import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import longvision.data

# `import longvision` registers the models, which needs torch: here the package is only a place to import from.
BARE = f"""
import sys, types
package = types.ModuleType("longvision")
package.__path__ = [{str(Path(longvision.__file__).parent)!r}]
sys.modules["longvision"] = package
"""
NAMES = ("torch", "timm", "lightning", "torchvision", "sklearn", "matplotlib")


def save(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array([0, 1], np.uint8), size)).save(path)


def folder(root):
    for place in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        save(root / place)
    return f"FolderData({str(root)!r})"


def masks(root):
    for number in range(3):
        save(root / f"images/{number}.png")
        save(root / f"masks/{number}.png")
    return f"MaskFolderData({str(root)!r})"


def coco(root):
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        save(root / split / "0.png")
        labels = {
            "images": [{"id": 0, "file_name": "0.png", "height": 8, "width": 6}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [0, 0, 2, 2]}],
            "categories": [{"id": 0, "name": "a"}],
        }
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(labels))
    return f"CocoData({str(root)!r})"


def voc(root):
    for place in ("Annotations", "ImageSets/Main"):
        (root / place).mkdir(parents=True)
    save(root / "JPEGImages/0.png")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"
    (root / "Annotations/0.xml").write_text(
        f"<annotation><size><height>8</height><width>6</width></size><object><name>a</name>{box}</object></annotation>"
    )
    for split in ("train", "val"):
        (root / f"ImageSets/Main/{split}.txt").write_text("0")
    return f"VocData({str(root)!r})"


def parquet(root):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [b"0"] * 4, "label": [0, 1] * 2}), root / "train.parquet")
    return f"ParquetData({str(root)!r})"


NAMES_EMBEDDED = ("Digits", "MixedDigits", "MostDigits", "ScatteredSegmentation", "ScatteredDetection")
EMBEDDED = tuple(f"{name}Data()" for name in NAMES_EMBEDDED)


def listing(made):
    """Of a source, its classes, and what is checked before a run starts."""
    check = "" if "Parquet" in made or made in EMBEDDED else "source.check('train')\n"
    return f"from longvision.data.config import *\nsource = {made}.source()\nassert len(source.classes)\n{check}"


def test_options_images_and_the_listing_of_a_set_need_no_torch(tmp_path):
    """So that a mistake in a path or an option is told at once. All in one process: whatever loads a library shows."""
    statements = {
        "images": "from longvision.data import read_image, find_images, InputSpec, Augment\n",
        "options": "import longvision.data.config, longvision.data.sources.parquet\n",
        **{made: listing(made) for made in EMBEDDED},
    }
    for make in (folder, masks, coco, voc, *([parquet] if find_spec("pyarrow") else [])):
        (tmp_path / make.__name__).mkdir()
        statements[make.__name__] = listing(make(tmp_path / make.__name__))
    report = f"print([name for name in {NAMES} if name in sys.modules])\n"
    script = BARE + "".join(statement + report for statement in statements.values())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert dict(zip(statements, done.stdout.splitlines(), strict=True)) == dict.fromkeys(statements, "[]")


def test_every_public_name_is_there():
    assert [name for name in longvision.data.__all__ if not hasattr(longvision.data, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = longvision.data.Nothing
