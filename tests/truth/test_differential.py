"""What check-data shows is what training, validate and predict see: pixel for pixel, label for label, of every format.

Each is held against the pixels and labels from which the files were made, turned, grey and transparent ones among them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("torchvision")
pytest.importorskip("pyarrow")
from longvision.data.augment import Augment, DenseAugment, DetectionAugment
from longvision.data.config import CocoData, FolderData, MaskFolderData, ParquetData, ShardsData, VocData
from longvision.data.datamodule import DataModule
from longvision.data.io.colours import spread_colours
from longvision.inference import Description, Predictor
from longvision.types import Detections, Target
from longvision.viz.overlays import draw_objects, draw_segmentation
from longvision.viz.sheets import viewable
from longvision_cli.main import main
from support.known_sets import CLASSES, SIDE, WRITERS, Example, Known

PLAIN: dict[str, Any] = {  # options by which training shows an image as it is
    "folder": (FolderData, Augment(crop_scale=None, flip=0.0), {"crop": 1.0}),
    "parquet": (ParquetData, Augment(crop_scale=None, flip=0.0), {"crop": 1.0}),
    "shards": (ShardsData, Augment(crop_scale=None, flip=0.0), {"crop": 1.0}),
    "masks": (MaskFolderData, DenseAugment(scale=(1.0, 1.0), flip=0.0, photometric=0.0, most=1.0), {}),
    "coco": (CocoData, DetectionAugment(scale=(1.0, 1.0), flip=0.0), {}),
    "voc": (VocData, DetectionAugment(scale=(1.0, 1.0), flip=0.0), {}),
}
TASKS = {"masks": "segmentation", "coco": "detection", "voc": "detection"}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@dataclass
class Set:
    """A set on disk: where, what it holds, and the data module that reads it."""

    source: str
    root: Path
    known: Known
    data: DataModule

    @property
    def task(self) -> str:
        return TASKS.get(self.source, "classification")


@pytest.fixture(scope="module", params=WRITERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Set:
    root = tmp_path_factory.mktemp(request.param)
    known = WRITERS[request.param](root, np.random.default_rng(0))
    config, augment, options = PLAIN[request.param]
    if request.param in ("masks", "shards"):
        options = {**options, "classes_file": str(root / "classes.txt")}
    data = config(path=str(root), size=SIDE, batch_size=2, workers=0, augment=augment, **options).build()
    assert data.classes == CLASSES
    return Set(request.param, root, known, data)


def seen(example: Example) -> Tensor:
    """What a model is to see of it: (3, H, W), normalised."""
    x_HWC = torch.from_numpy(example.pixels_HWC).float() / 255
    return ((x_HWC - MEAN) / STD).permute(2, 0, 1)


def samples(batches: Any) -> list[tuple[Tensor, Any]]:
    return [sample for images, labels in batches for sample in zip(images, labels, strict=True)]


def label_of(label: Any) -> tuple[np.ndarray, ...]:
    """A label of any task as arrays, for comparison."""
    if not isinstance(label, Target):
        return (np.asarray(label),)
    masks = () if label.masks is None else (np.asarray(label.masks),)
    return np.asarray(label.boxes), np.asarray(label.labels), *masks


def assert_same(sample: tuple[Tensor, Any], example: Example) -> None:
    torch.testing.assert_close(sample[0], seen(example), rtol=0, atol=1e-6)
    expected = example.label if isinstance(example.label, tuple) else (np.asarray(example.label),)
    expected = tuple(values for values in expected if values is not None)
    found = label_of(sample[1])
    assert len(found) == len(expected)
    for got, value in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_validate_sees(made: Set, split: str) -> None:
    loader = made.data.val_dataloader() if split == "val" else made.data.test_dataloader()
    found = samples(loader)
    assert len(found) == len(made.known[split])
    for sample, example in zip(found, made.known[split], strict=True):
        assert_same(sample, example)


def test_what_training_sees(made: Set) -> None:
    """In an order of its own: each image once, told by its pixels."""
    found = samples(made.data.train_dataloader())
    left = list(made.known["train"])
    assert len(found) == len(left)
    for sample in found:
        near = min(range(len(left)), key=lambda row: float((sample[0] - seen(left[row])).abs().max()))
        assert_same(sample, left.pop(near))


class Recorder(nn.Module):
    """In place of a model: remembers what it was shown, and answers as one of its task."""

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense, self.shown = dense, list[Tensor]()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        self.shown += list(images_BCHW)
        return torch.zeros(len(images_BCHW), len(CLASSES), *(images_BCHW.shape[2:] if self.dense else ()))

    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        self.shown += images
        nothing = torch.zeros(0, dtype=torch.int64)
        return [Detections(torch.zeros(0, 4), torch.zeros(0), nothing, None) for _ in images]


def test_what_predict_sees(made: Set) -> None:
    model = Recorder(dense=made.task == "segmentation")
    about = Description(
        "none", CLASSES, made.data.input, made.task, palette=made.data.info.palette or spread_colours(len(CLASSES))
    )
    results = Predictor(model, description=about)([example.file for example in made.known["val"]])
    for x_CHW, result, example in zip(model.shown, results, made.known["val"], strict=True):
        torch.testing.assert_close(x_CHW, seen(example), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(result.input.convert("RGB")), example.pixels_HWC)


def panel(made: Set, example: Example) -> Image.Image:
    """How check-data is to draw it."""
    image = Image.fromarray(example.pixels_HWC)
    if made.task == "classification":
        return viewable(image)
    palette = made.data.info.palette or spread_colours(len(CLASSES))
    if made.task == "segmentation":
        return draw_segmentation(image, {"labels": example.label}, CLASSES, palette)
    boxes_N4, labels_N, masks = example.label
    return draw_objects(image, {"labels": Target(boxes_N4, labels_N, np.zeros(2, bool), masks)}, CLASSES, palette)


def test_what_check_data_shows(made: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-data", "--task", made.task, "--source", made.source, "--data.path", made.root]
    if made.source in ("masks", "shards"):
        words += ["--data.classes_file", made.root / "classes.txt"]
    assert main([str(word) for word in [*words, "--out", tmp_path / "drawn"]]) == 0
    assert "not used" not in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "drawn/samples.png").convert("RGB"))
    for example in made.known["train"]:
        assert occurs(np.asarray(panel(made, example)), sheet)


def occurs(part: np.ndarray, whole: np.ndarray) -> bool:
    """Whether an image is a part of another, pixel for pixel."""
    height, width = part.shape[:2]
    rows, columns = (whole.shape[axis] - part.shape[axis] + 1 for axis in (0, 1))
    y, x = height // 2, width // 2
    ys, xs = np.nonzero((whole[y : y + rows, x : x + columns] == part[y, x]).all(-1))
    for y in range(0, height, max(1, height // 16)):  # a few pixels tell most places, all pixels the rest
        x = y % width
        same = (whole[ys + y, xs + x] == part[y, x]).all(-1)
        ys, xs = ys[same], xs[same]
    return any((whole[y : y + height, x : x + width] == part).all() for y, x in zip(ys, xs))
