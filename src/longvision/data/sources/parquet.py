"""A Hugging Face image set in local Parquet files: train*, val* and test*.parquet in DIR or in DIR/data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from longvision.data.io.images import Channels, read_image
from longvision.data.problems import listing, require_folder
from longvision.data.sources.base import Source, hold_out
from longvision.errors import MissingFileError, UserError
from longvision.types import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Shards:
    """The files of one split and their image column, held encoded in memory, as large as on disk.

    Forked workers share the one copy. A pickled `Shards` leaves it behind and reads the files where it lands.
    """

    def __init__(self, files: list[Path], column: str) -> None:
        self.files = files
        self.column = column
        self._images: pa.ChunkedArray | None = None

    @property
    def images(self) -> pa.ChunkedArray:
        if self._images is None:
            self._images = read_column(self.files, self.column)
        return self._images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}


class ParquetSplit:
    """Some rows of a split's files, decoded when they are asked for."""

    def __init__(self, shards: Shards, rows: np.ndarray, labels: np.ndarray, channels: Channels, name: str) -> None:
        self.shards = shards
        self.rows = rows
        self.labels = labels
        self.channels = channels
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = int(self.rows[index])
        encoded = self.shards.images[row].as_py()
        return read_image(encoded, self.channels, f"row {row} of {self.name}"), int(self.labels[index])


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
        self.root, self.name = Path(root), str(root)
        self.channels = channels
        self.seed = seed
        self.image_column = image_column
        self.label_column = label_column
        self.files = find_files(self.root)
        for files in self.files.values():
            for file in files:
                self._check_columns(file)
        self.classes = self._find_classes()
        self._check_class_names()
        self.has_test = "test" in self.files
        self._shards: dict[Split, Shards] = {}

    def split(self, split: Split) -> ParquetSplit:
        stored = split in self.files
        source: Split = split if stored else "train"
        labels = self._labels(source)
        rows = np.arange(len(labels))
        if "val" not in self.files and split != "test":
            train, val = hold_out(labels, self.seed)
            rows = train if split == "train" else val
        return ParquetSplit(self._open(source), rows, labels[rows], self.channels, self._where(source))

    def _open(self, split: Split) -> Shards:
        """The split's shards, read now: workers that fork later share the memory."""
        if split not in self._shards:
            shards = Shards(self.files[split], self.image_column)
            if shards.images.null_count:
                raise UserError(
                    f"{self._where(split)} has {shards.images.null_count} rows without image bytes: "
                    "store the encoded images themselves, not their paths, or drop the rows"
                )
            self._shards[split] = shards
        return self._shards[split]

    def _labels(self, split: Split) -> np.ndarray:
        """Class numbers (N,) of a split, checked against the classes."""
        column = self._label_values(split)
        if is_text(column.type):
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
        names = class_names(self.files["train"][0], self.label_column)
        if names is None:
            column = self._label_values("train")
            names = sorted(set(column.to_pylist())) if is_text(column.type) else self._numbers(column)
        if len(names) < 2:
            raise UserError(f"{self._where('train')} has {len(names)} classes: two are needed at least")
        return names

    def _numbers(self, column: pa.ChunkedArray) -> list[str]:
        highest = int(column.to_numpy().max())
        if highest >= len(column):
            raise UserError(
                f"{self._where('train')} has the label {highest} in {len(column)} rows: "
                "expected class numbers from 0, or class names"
            )
        return [str(number) for number in range(highest + 1)]

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
        if not is_bytes(image) and not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
            raise UserError(
                f"{file} has {image} in the column {self.image_column}: expected encoded images, "
                "as binary or as a struct with the field bytes"
            )
        if not is_text(label) and not pa.types.is_integer(label):
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
        table = pq.read_table(file, columns=[column], memory_map=True, use_threads=False)
        values = table.column(column)
        if pa.types.is_struct(values.type):
            kind = values.type.field("bytes").type
            values = pa.chunked_array([pc.struct_field(chunk, "bytes") for chunk in values.chunks], kind)
        chunks += values.cast(plain(values.type)).chunks
    return pa.chunked_array(chunks)


def class_names(file: Path, column: str) -> list[str] | None:
    """The names that the `datasets` library stored for a ClassLabel column, if it did."""
    stored = (read_schema(file).metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    features = json.loads(stored).get("info", {}).get("features", {})
    names: list[str] | None = features.get(column, {}).get("names")
    return names


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values; pandas stores categories as a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
