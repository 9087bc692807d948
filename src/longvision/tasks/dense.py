"""What segmentation and detection share: metrics of a split, of each class too, and images with what was found."""

import csv
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from longvision.errors import MissingFileError, UnreadableImage
from longvision.tasks.config import TaskConfig
from longvision.tasks.task import Artifacts, Task
from longvision.text import printable
from longvision.types import DataInfo
from longvision.viz import page
from longvision.viz.charts import draw_class_metrics
from longvision.viz.sheets import contact_sheet

EXAMPLES = 8  # images in predictions.png


class DenseTask(Task):
    """A subclass updates `val_metrics` and `test_metrics`, and draws one image's `panel`.

    These compute scalars, which are logged, and "class_…", tensors of a value a class, of which `class_metric_names`
    selects some.
    """

    create: ClassVar[Any]  # of `longvision.heads`: backbone, classes, channels, size and `head` -> the model
    class_metric_names: ClassVar[dict[str, str]]  # computed name -> words; the first is drawn
    val_metrics: Any
    test_metrics: Any

    def __init__(self, config: TaskConfig, info: DataInfo) -> None:
        super().__init__(config, info)
        self.by_class: dict[str, list[float]] = {}  # words -> a value a class, NaN where it does not occur

    @property
    def head(self) -> dict[str, Any]:
        """Further arguments of the head, with which prediction makes it again."""
        raise NotImplementedError

    def create_model(self, args: dict[str, Any]) -> nn.Module:
        return self.create(
            self.config.name,
            classes=len(self.info.classes),
            channels=self.info.channels,
            size=self.info.size,
            pretrained=self.config.pretrained,
            args=args,
            **self.head,
        )

    def describe(self) -> dict[str, Any]:
        return {"head": self.head}

    def on_validation_epoch_end(self) -> None:
        self._finish("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._finish("test", self.test_metrics)

    def _finish(self, split: str, metrics: Any) -> None:
        found = metrics.compute()  # on every device: it gathers
        names = self.class_metric_names
        # torchmetrics makes a scalar of a tensor of one element, as a single class has
        self.by_class = {words: found[name].reshape(-1).tolist() for name, words in names.items() if name in found}
        by_class = [name for name in found if name.startswith("class_")]
        scalars = {f"{split}/{name}": value.float() for name, value in found.items() if name not in by_class}
        self.log_dict(scalars, sync_dist=True)  # the same on every device; else Lightning warns that it may not be
        metrics.reset()

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        """One image of the split beside what is found in it and what is there."""
        raise NotImplementedError

    def artifacts(self, data: Any, split: str, title: str) -> Artifacts:
        made: Artifacts = {"predictions.png": partial(self._draw_examples, data, split, title)}
        if self.by_class:
            words, values = next(iter(self.by_class.items()))
            made["classes.csv"] = self._write_classes
            made["classes.png"] = lambda path: draw_class_metrics(
                dict(zip(self.info.classes, values, strict=True)), path, title, f"{words}, %"
            )
        return made

    def _write_classes(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["class", *self.by_class])
            table.writerows(zip(self.info.classes, *self.by_class.values(), strict=True))

    @torch.inference_mode()
    def _draw_examples(self, data: Any, split: str, title: str, path: Path) -> None:
        self.eval()
        panels = []
        for row in data.examples(split, EXAMPLES):
            with suppress(UnreadableImage, MissingFileError):  # named when it was read before
                panels.append(self.panel(data, split, row))
        contact_sheet(panels, f"{title}: some images").save(path)

    def sections(self, data: Any, split: str) -> dict[str, str]:
        rows = zip(self.info.classes, *self.by_class.values(), strict=True)
        cells = [[name, *map(page.percent, row)] for name, *row in rows]
        return {"Classes": page.table(["class", *self.by_class], cells)} if self.by_class else {}

    def class_table(self) -> list[str]:
        """A line a class; those that do not occur have a dash."""
        names = list(map(printable, self.info.classes))
        width = max(map(len, ["class", *names]))
        lines = [f"{'class':<{width}}  " + "  ".join(f"{words:>8}" for words in self.by_class)]
        for name, *values in zip(names, *self.by_class.values(), strict=True):
            cells = [f"{100 * value:.1f} %" if value == value else "-" for value in values]
            lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>8}" for cell in cells))
        return lines
