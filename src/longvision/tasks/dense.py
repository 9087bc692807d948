"""What segmentation and detection share: figures of a split, of each class too, and pictures of what was found."""

import csv
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from longvision.tasks.task import Task
from longvision.viz.charts import draw_class_figures
from longvision.viz.sheets import contact_sheet

EXAMPLES = 8  # pictures in predictions.png


class DenseTask(Task):
    """A subclass updates `val_figures` and `test_figures`, and draws one picture's `panel`.

    These compute scalars, which are logged, and tensors of a value a class, of which `class_figures` keeps some.
    """

    class_figures: ClassVar[dict[str, str]]  # computed name -> words; the first is drawn
    leaves = "curves.png, classes.png, classes.csv, predictions.png"
    val_figures: Any
    test_figures: Any

    def on_validation_epoch_end(self) -> None:
        self._finish("val", self.val_figures)

    def on_test_epoch_end(self) -> None:
        self._finish("test", self.test_figures)

    def _finish(self, split: str, figures: Any) -> None:
        found = figures.compute()
        self.by_class = {words: found[name].tolist() for name, words in self.class_figures.items() if name in found}
        self.log_dict({f"{split}/{name}": value.float() for name, value in found.items() if value.ndim == 0})
        figures.reset()

    def panel(self, data: Any, split: str, row: int) -> Image.Image:
        """One picture of the split beside what is found in it and what is there."""
        raise NotImplementedError

    @torch.inference_mode()
    def draw(self, data: Any, split: str, folder: Path, title: str) -> None:
        words, values = next(iter(self.by_class.items()))
        by_class = dict(zip(self.classes, values, strict=True))
        draw_class_figures(by_class, folder / "classes.png", title, f"{words}, %")
        with (folder / "classes.csv").open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["class", *self.by_class])
            table.writerows(zip(self.classes, *self.by_class.values(), strict=True))
        self.eval()
        panels = [self.panel(data, split, row) for row in data.examples(split, EXAMPLES)]
        contact_sheet(panels, f"{title}: some pictures").save(folder / "predictions.png")

    def class_table(self) -> list[str]:
        """A line a class; those that do not occur have a dash."""
        width = max(map(len, ["class", *self.classes]))
        lines = [f"{'class':<{width}}  " + "  ".join(f"{words:>8}" for words in self.by_class)]
        for name, *values in zip(self.classes, *self.by_class.values(), strict=True):
            cells = [f"{100 * value:.1f} %" if value == value else "-" for value in values]
            lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:>8}" for cell in cells))
        return lines
