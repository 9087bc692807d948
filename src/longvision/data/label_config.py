"""Options of images whose labels are in a table. Loads no torch."""

from dataclasses import dataclass, field
from typing import Any

from longvision.data.config import ClassificationConfig, HoldOutConfig
from longvision.data.sources.base import Source, Trained
from longvision.data.sources.label_columns import Columns
from longvision.data.sources.label_table import LabelTableSource


@dataclass(frozen=True, kw_only=True)
class LabelTableData(ClassificationConfig, HoldOutConfig):
    """Images with labels in a CSV file: one class an image, or any number of them.

    Args:
        path: the file, or a folder with it, or with train.csv, val.csv and test.csv. It has a heading, a column of
            images and one of labels (cat, or cat|dog), or one of 0 and 1 for each class; a column split, or folders
            of images called train, val and test, say what validates and tests, else a tenth validates.
        images: the folder in which images' paths begin; the file's own when left out.
        image_column: the column of images; found by its name when left out.
        label_column: the column of labels; found by its name when left out.
        separator: what stands between several labels of one image; none for one label whatever is in it.
        multilabel: whether an image may have any number of labels; whether one has several when left out.
    """

    path: str = field(kw_only=False)
    images: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    separator: str | None = None
    multilabel: bool | None = None

    def source(self, trained: Trained | None = None) -> Source[Any]:
        columns = Columns(self.image_column, self.label_column, self.separator)
        return self.tolerant(
            LabelTableSource(self.path, self.channels, self.seed, columns, self.images, self.multilabel, trained)
        )
