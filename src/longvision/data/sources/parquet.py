"""A Hugging Face image set in local Parquet files: train*, val* and test*.parquet in DIR or in DIR/data."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from longvision.data.io.images import Channels
from longvision.data.problems import listing
from longvision.data.sources.base import ImageSet, Listed, Source, Trained, hold_out, look_alike, without_images
from longvision.data.sources.parquet_images import Shards
from longvision.data.sources.parquet_labels import (
    ShardLabels,
    by_name,
    check_names,
    find_classes,
    plain,
    read_labels,
    read_schema,
)
from longvision.data.sources.shard_layout import find_files
from longvision.errors import UserError
from longvision.types import Split

BYTES = ("binary", "large_binary", "binary_view")


class ParquetSource(Source[int]):
    """The Parquet files below `root`; construction reads all schemas and labels, and checks them in every file.

    Classes are the names of the `datasets` ClassLabel in the schemas, else the sorted labels when they are
    strings, else "0" to the highest label. Every file that stores names has to store the same. Without validation
    files, a tenth of each class, drawn with `seed`, validates. Test files without labels are not used.
    """

    def __init__(
        self,
        root: str | Path,
        channels: Channels = 3,
        seed: int = 0,
        image_column: str = "image",
        label_column: str = "label",
        trained: Trained | None = None,
    ) -> None:
        self.name, self.channels, self.seed = str(root), channels, seed
        self.image_column, self.label_column = image_column, label_column
        self.files = find_files(Path(root), self.notes, any_split=trained is not None)
        if "test" in self.files and not self._is_labelled(self.files["test"]):
            self.notes.append(f"{self._where('test')} has no labels: it is not used")
            del self.files["test"]
        self.has_test, self.splits = "test" in self.files, list(self.files)
        self.draws_validation = trained is None and "val" not in self.files
        shards = {split: [self._read_labels(file) for file in files] for split, files in self.files.items()}
        if trained is None:
            self.classes = find_classes(shards["train"])
            self.notes += look_alike(self.classes, self._where("train"))
            self.notes += check_names([shard for found in shards.values() for shard in found], self.classes)
        else:
            self.classes = trained.classes
            shards = {split: [by_name(shard, self.classes) for shard in found] for split, found in shards.items()}
        self.labels: dict[Split, np.ndarray] = {split: self._number(split, found) for split, found in shards.items()}
        self.notes += without_images(self.classes, self.labels["train"].tolist()) if trained is None else []
        self._shards: dict[Split, Shards] = {}

    def split(self, split: Split) -> ImageSet[int]:
        held_out = self.draws_validation and split != "test"
        source: Split = "train" if held_out else split
        labels = self.labels[source]
        rows = np.arange(len(labels))
        if held_out:
            train, val = hold_out(labels, self.seed)
            rows = train if split == "train" else val
        shards = self._open(source)
        return ImageSet(np.stack([rows, labels[rows]], 1), shards.read, shards.file, shards.window)  # type: ignore[arg-type]

    def listed_images(self, split: Split) -> list[Listed]:
        """By their content: rows have no name, and another place when files are written anew."""
        rows = self.split(split)
        shards = self._open("train" if self.draws_validation and split != "test" else split)
        return [Listed(shards.digest(row), self.classes[label]) for row, label in np.asarray(rows.items).tolist()]

    def _open(self, split: Split) -> Shards:
        """The split's shards, read now: workers that fork later share the memory."""
        if split not in self._shards:
            shards = self._shards[split] = Shards(
                self.files[split], self.image_column, self.channels, self._where(split), self.tolerated
            )
            _ = shards.table
            self.notes += shards.notes
        _ = self._shards[split].table  # if another process opened them for this one
        return self._shards[split]

    def _is_labelled(self, files: list[Path]) -> bool:
        """Sets of competitions come with test images alone."""
        schemas = {file: read_schema(file) for file in files}
        columns = [(file, schema) for file, schema in schemas.items() if self.label_column in schema.names]
        return any(read_labels(file, schema, self.label_column).labelled for file, schema in columns)

    def _read_labels(self, file: Path) -> ShardLabels:
        schema = read_schema(file)
        self._check_columns(file, schema)
        return read_labels(file, schema, self.label_column)

    def _number(self, split: Split, shards: list[ShardLabels]) -> np.ndarray:
        """Class numbers (N,) of a split's files, end to end."""
        labels = np.concatenate([shard.numbers(self.classes) for shard in shards])
        if not len(labels):
            raise UserError(f"{self._where(split)} has no rows: expected images with labels")
        return labels

    def _check_columns(self, file: Path, schema: pa.Schema) -> None:
        if missing := [name for name in (self.image_column, self.label_column) if name not in schema.names]:
            raise UserError(
                f"{file} has no column {' and no column '.join(missing)}, only {listing(schema.names)}: "
                "name the two with image_column and label_column"
            )
        if twice := [name for name in (self.image_column, self.label_column) if schema.names.count(name) > 1]:
            raise UserError(f"{file} has several columns {listing(twice)}: keep one")
        image = schema.field(self.image_column).type
        inside = (
            image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
        )
        if str(plain(inside)) not in BYTES:
            raise UserError(
                f"{file} has {image} in the column {self.image_column}: expected encoded images, "
                "as binary or as a struct with the field bytes"
            )

    def _where(self, split: Split) -> str:
        files = self.files[split]
        return str(files[0]) if len(files) == 1 else f"{files[0].parent}/{split}*.parquet"
