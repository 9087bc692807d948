"""Which tasks there are, and where the code of each lies: dotted paths, so that reading the table loads nothing."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from longvision.errors import UserError


@dataclass(frozen=True)
class TaskEntry:
    """One task.

    Args:
        module: its LightningModule.
        config: the dataclass of its options, `--model.…`.
        sources: where its images may come from, the default first: a word -> the dataclass of its options, `--data.…`.
        predictor: what runs a trained model of it on images.
        output: what `longvision predict` prints and writes of the results.
    """

    module: str
    config: str
    sources: dict[str, str]
    predictor: str
    output: str


_OBJECT_SOURCES = {
    "coco": "longvision.data.config.CocoData",
    "scattered": "longvision.data.config.ScatteredDetectionData",
    "voc": "longvision.data.config.VocData",
}

TASKS = {
    "classification": TaskEntry(
        "longvision.tasks.classification.Classification",
        "longvision.tasks.config.ClassificationConfig",
        {
            "folder": "longvision.data.config.FolderData",
            "digits": "longvision.data.config.DigitsData",
            "labels": "longvision.data.label_config.LabelTableData",
            "mixed_digits": "longvision.data.config.MixedDigitsData",
            "parquet": "longvision.data.config.ParquetData",
            "scattered": "longvision.data.config.MostDigitsData",
            "shards": "longvision.data.config.ShardsData",
        },
        "longvision.inference.classification.ClassificationPredictor",
        "longvision.inference.outputs.ClassTable",
    ),
    "segmentation": TaskEntry(
        "longvision.tasks.segmentation.Segmentation",
        "longvision.tasks.config.SegmentationConfig",
        {
            "masks": "longvision.data.config.MaskFolderData",
            "scattered": "longvision.data.config.ScatteredSegmentationData",
        },
        "longvision.inference.segmentation.SegmentationPredictor",
        "longvision.inference.outputs.MaskFiles",
    ),
    "detection": TaskEntry(
        "longvision.tasks.detection.Detection",
        "longvision.tasks.config.DetectionConfig",
        _OBJECT_SOURCES,
        "longvision.inference.detection.DetectionPredictor",
        "longvision.inference.outputs.ObjectFiles",
    ),
    "detr": TaskEntry(
        "longvision.tasks.detr.DetrDetection",
        "longvision.tasks.config.DetrConfig",
        _OBJECT_SOURCES,
        "longvision.inference.detection.DetectionPredictor",
        "longvision.inference.outputs.ObjectFiles",
    ),
}


def task_entry(name: str) -> TaskEntry:
    """Raises UserError for a task that does not exist."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]


def load(path: str) -> Any:
    """What a dotted path names, imported now."""
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)
