"""What all tasks have in common."""

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightning")
pytest.importorskip("faster_coco_eval")
from lightning import Trainer

from longvision.tasks.classification import Classification
from longvision.tasks.config import ClassificationConfig, DetectionConfig
from longvision.tasks.detection import Detection
from longvision.types import DataInfo, Detections, Target

SMALL = {"name": "vim_nano_patch4_32", "args": {"depth": 1, "embed_dim": 16}}
INFO = DataInfo("set", ["a", "b"], (8, 8))
NONE = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)


def classification(monkeypatch):
    def batch(size):
        return torch.zeros(size, 3, 8, 8), torch.zeros(size, dtype=torch.long)

    return Classification(ClassificationConfig(**SMALL), INFO), batch


def detection(monkeypatch):
    def batch(size):
        return [torch.zeros(3, 8, 8)] * size, [Target(*NONE, torch.zeros(0, dtype=torch.bool))] * size

    task = Detection(DetectionConfig(**SMALL, width=16), INFO)
    found = Detections(NONE[0], torch.zeros(0), NONE[1])
    monkeypatch.setattr(task, "detect", lambda images, sizes: [found] * len(images))
    return task, batch


@pytest.mark.filterwarnings("ignore:.*DataLoader|.*num_workers")
@pytest.mark.parametrize("make", [classification, detection])
@pytest.mark.parametrize("split", ["val", "test"])
def test_images_that_were_evaluated_are_counted_anew_each_time(monkeypatch, make, split):
    """Not those of the split: some of a batch may not be readable."""
    task, batch = make(monkeypatch)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    run = trainer.validate if split == "val" else trainer.test
    for sizes in ((3, 2, 3), (1,)):
        run(task, DataLoader([batch(size) for size in sizes], batch_size=None), verbose=False)
        assert task.evaluated == sum(sizes)
