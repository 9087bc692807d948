"""A Hugging Face image set in local Parquet files: train*, val* and test*.parquet in DIR or in DIR/data."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from longvision.data.io.images import Channels, read_image
from longvision.data.problems import listing, require_folder
from longvision.data.sources.base import ImageSet, Source, hold_out
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TEXT, BYTES = (pa.string(), pa.large_string()), (pa.binary(), pa.large_binary())


class Shards:
    """The image column of one split's files, held encoded in memory, as large as on disk.

    Forked workers share the one copy. A pickled `Shards` leaves it behind and reads the files where it lands.
    """

    def __init__(self, files: list[Path], column: str, channels: Channels, name: str) -> None:
        self.files, self.column, self.channels, self.name = files, column, channels, name

    @cached_property
    def images(self) -> pa.ChunkedArray:
        return read_column(self.files, self.column)

    def read(self, row_and_label: np.ndarray) -> tuple[Image.Image, int]:
        row, label = row_and_label.tolist()
        return read_image(self.images[row].as_py(), self.channels, f"row {row} of {self.name}"), label

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "images"}


class ParquetSource(Source[int]):
    """The Parquet files below `root`; construction reads schemas, and labels where no class names are stored.

    Classes are the names of the `datasets` ClassLabel in the schema, else the sorted labels when they are
    strings, else "0" to the highest label. Without validation files, a tenth of each class, drawn with
    `seed`, validates.
    """

    def __init__(
        self,
        root: str | Path,
        channels: Channels = 3,
        seed: int = 0,
        image_column: str = "image",
        label_column: str = "label",
    ) -> None:
        self.name, self.channels, self.seed = str(root), channels, seed
        self.image_column, self.label_column = image_column, label_column
        self.files = find_files(Path(root))
        self.has_test = "test" in self.files
        for files in self.files.values():
            for file in files:
                self._check_columns(file)
        self.classes = self._find_classes()
        self._check_class_names()
        self._shards: dict[Split, Shards] = {}

    def split(self, split: Split) -> ImageSet[int]:
        held_out = "val" not in self.files and split != "test"
        source: Split = "train" if held_out else split
        labels = self._labels(source)
        rows = np.arange(len(labels))
        if held_out:
            train, val = hold_out(labels, self.seed)
            rows = train if split == "train" else val
        return ImageSet(np.stack([rows, labels[rows]], 1), self._open(source).read)  # type: ignore[arg-type]

    def _open(self, split: Split) -> Shards:
        """The split's shards, read now: workers that fork later share the memory."""
        if split not in self._shards:
            shards = Shards(self.files[split], self.image_column, self.channels, self._where(split))
            if shards.images.null_count:
                raise UserError(
                    f"{shards.name} has {shards.images.null_count} rows without image bytes: "
                    "store the encoded images themselves, not their paths, or drop the rows"
                )
            self._shards[split] = shards
        return self._shards[split]

    def _labels(self, split: Split) -> np.ndarray:
        """Class numbers (N,) of a split, checked against the classes."""
        column = self._label_values(split)
        if column.type in TEXT:
            number = {name: number for number, name in enumerate(self.classes)}
            labels = np.array([number.get(name, -1) for name in column.to_pylist()], dtype=np.int64)
        else:
            labels = column.to_numpy().astype(np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise UserError(
                f"row {wrong[0]} of {self._where(split)} has the label {column[int(wrong[0])].as_py()!r}, "
                f"outside the {len(self.classes)} classes {listing(self.classes)}: correct or drop such rows"
            )
        return labels

    def _label_values(self, split: Split) -> pa.ChunkedArray:
        column = read_column(self.files[split], self.label_column)
        if not len(column):
            raise UserError(f"{self._where(split)} has no rows: expected images with labels")
        if column.null_count:
            raise UserError(f"{self._where(split)} has {column.null_count} rows without a label: drop or label them")
        return column

    def _find_classes(self) -> list[str]:
        where, names = self._where("train"), class_names(self.files["train"][0], self.label_column)
        if names is None:
            column = self._label_values("train")
            if column.type in TEXT:
                names = sorted(set(column.to_pylist()))
            elif (highest := int(column.to_numpy().max())) < len(column):
                names = [str(number) for number in range(highest + 1)]
            else:
                raise UserError(
                    f"{where} has the label {highest} in {len(column)} rows: "
                    "expected class numbers from 0, or class names"
                )
        if len(names) < 2:
            raise UserError(f"{where} has {len(names)} classes: two are needed at least")
        return names

    def _check_class_names(self) -> None:
        for split, files in self.files.items():
            names = class_names(files[0], self.label_column)
            if names is not None and names != self.classes:
                raise UserError(
                    f"{self._where(split)} numbers its classes {listing(names)}, but the training files "
                    f"{listing(self.classes)}: take the files of one set"
                )

    def _check_columns(self, file: Path) -> None:
        schema = read_schema(file)
        if missing := [name for name in (self.image_column, self.label_column) if name not in schema.names]:
            raise UserError(
                f"{file} has no column {' and no column '.join(missing)}, only {listing(schema.names)}: "
                "name the two with image_column and label_column"
            )
        image, label = schema.field(self.image_column).type, plain(schema.field(self.label_column).type)
        if image not in BYTES and not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
            raise UserError(
                f"{file} has {image} in the column {self.image_column}: expected encoded images, "
                "as binary or as a struct with the field bytes"
            )
        if label not in TEXT and not pa.types.is_integer(label):
            raise UserError(
                f"{file} has {label} in the column {self.label_column}: expected class numbers or class names"
            )

    def _where(self, split: Split) -> str:
        files = self.files[split]
        return str(files[0]) if len(files) == 1 else f"{files[0].parent}/{split}*.parquet"


def find_files(root: Path) -> dict[Split, list[Path]]:
    """The sorted Parquet files of each split, in `root` or in `root`/data."""
    require_folder(root, "give the folder that holds train*.parquet")
    for folder in (root, root / "data"):
        found = {split: sorted(folder.glob(f"{split}*.parquet")) for split in SPLITS}
        if found["train"]:
            return {split: files for split, files in found.items() if files}
    elsewhere = sorted({str(file.parent) for file in root.rglob("*.parquet")})
    hint = f"; there are Parquet files in {listing(elsewhere)}" if elsewhere else ""
    raise MissingFileError(f"no train*.parquet in {root} or in {root / 'data'}: give the folder that holds it{hint}")


def read_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Parquet file: {error}") from error


def read_column(files: list[Path], column: str) -> pa.ChunkedArray:
    """One column of several files, end to end; of an image struct, its bytes."""
    chunks: list[pa.Array] = []
    for file in files:
        # one thread: Arrow's pool does not survive the fork into a worker
        values = pq.read_table(file, columns=[column], memory_map=True, use_threads=False).column(column)
        if pa.types.is_struct(values.type):
            kind = values.type.field("bytes").type
            values = pa.chunked_array([pc.struct_field(chunk, "bytes") for chunk in values.chunks], kind)
        chunks += values.cast(plain(values.type)).chunks
    return pa.chunked_array(chunks)


def class_names(file: Path, column: str) -> list[str] | None:
    """The names that the `datasets` library stored for a ClassLabel column, if it did."""
    stored = json.loads((read_schema(file).metadata or {}).get(b"huggingface", "{}"))
    names: list[str] | None = stored.get("info", {}).get("features", {}).get(column, {}).get("names")
    return names


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values; pandas stores categories as a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
