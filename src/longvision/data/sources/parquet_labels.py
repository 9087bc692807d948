"""The labels of Parquet files: each file's names, types and values, which all must mean the same."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longvision.data.problems import listing
from longvision.data.sources.base import unknown_classes
from longvision.errors import UserError

UNLABELLED = -1  # what `datasets` stores for the label of an image without one


@dataclass(frozen=True)
class ShardLabels:
    """One file's labels.

    Args:
        file: where they are.
        names: of the classes, that `datasets` stored in the file's schema; None where it did not.
        values: class names, or class numbers as int64; null where there is no label.
    """

    file: Path
    names: list[str] | None
    values: pa.ChunkedArray

    @property
    def is_text(self) -> bool:
        return is_text(self.values.type)

    @property
    def labelled(self) -> bool:
        """Whether any image has a label."""
        unlabelled = self.values.null_count
        if not self.is_text:
            unlabelled += pc.sum(pc.equal(self.values, UNLABELLED)).as_py() or 0
        return unlabelled < len(self.values)

    def numbers(self, classes: Sequence[str]) -> np.ndarray:
        """Class numbers (N,). Raises UserError for a label that is none of the classes."""
        if self.values.null_count:
            row = int(np.flatnonzero(pc.is_null(self.values).to_numpy())[0])
            raise UserError(
                f"{self.file} has {self.values.null_count} rows without a label (row {row} is the first): "
                "drop or label them"
            )
        if self.is_text:
            number_of = {name: number for number, name in enumerate(classes)}
            numbers = np.array([number_of.get(name, -1) for name in self.values.to_pylist()], dtype=np.int64)
        else:
            numbers = self.values.to_numpy().astype(np.int64)
        wrong = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
        if len(wrong):
            raise UserError(
                f"row {wrong[0]} of {self.file} has the label {self.values[int(wrong[0])].as_py()!r}, "
                f"outside the {len(classes)} classes {listing(list(classes))}: correct or drop such rows"
            )
        return numbers


def by_name(shard: ShardLabels, classes: Sequence[str]) -> ShardLabels:
    """With the names that its file stores for its numbers, or as it is where there are none. Raises UserError for names
    in use that are none of the classes."""
    names = shard.names
    if not shard.is_text:
        if names is None:
            return shard
        values = [None if number is None or not 0 <= number < len(names) else names[number]
                  for number in shard.values.to_pylist()]  # fmt: skip
        shard = ShardLabels(shard.file, None, pa.chunked_array([pa.array(values, pa.large_string())]))
    if unknown := set(shard.values.unique().to_pylist()) - {None, *classes}:
        raise unknown_classes(shard.file, unknown, classes, "correct or drop such rows")
    return shard


def read_labels(file: Path, schema: pa.Schema, column: str) -> ShardLabels:
    """Categories become what they stand for; truth values, whole floats and decimals become numbers.

    Raises:
        UserError: labels of another kind, or broken numbers.
    """
    values = read_column(file, column)
    kind = plain(values.type)
    try:
        values = values.cast(kind)
        if is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            values = values.cast(pa.large_string())  # bytes are UTF-8, or an error
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
            values = values.cast(pa.int64())
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            values = _whole(values.cast(pa.float64()))
        else:
            raise UserError(f"{file} has {kind} in the column {column}: expected class numbers or class names")
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file} has {kind} in the column {column} that are no class numbers or names: {reason}"
        ) from error
    return ShardLabels(file, class_names(file, schema, column), values)


def _whole(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats -> int64; NaN, as pandas writes a missing number, is null. Raises ArrowInvalid for a fraction."""
    return pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values).cast(pa.int64())


def find_classes(train: Sequence[ShardLabels]) -> list[str]:
    """The names that the training files store, else their sorted labels where these are names, else "0" to the highest.

    Raises:
        UserError: files whose labels do not go together, or that make no classes.
    """
    if not sum(len(shard.values) for shard in train):
        raise UserError(f"{train[0].file} has no rows: expected images with labels")
    stored = next((shard.names for shard in train if shard.names is not None), None)
    if stored is None:
        names = _names_of_values([shard for shard in train if len(shard.values)])
    else:
        names = stored
    if len(names) < 2:
        raise UserError(f"{train[0].file} has {len(names)} classes: two are needed at least")
    return names


def _names_of_values(shards: Sequence[ShardLabels]) -> list[str]:
    words, numbers = ([shard for shard in shards if shard.is_text == text] for text in (True, False))
    if words and numbers:
        raise UserError(
            f"{words[0].file} has class names for labels, {numbers[0].file} class numbers, and neither says which name "
            "has which number: write both the same way"
        )
    for shard in shards:
        if shard.values.null_count:
            shard.numbers(())  # tells of it
    if words:
        return sorted(set().union(*(shard.values.unique().to_pylist() for shard in words)))
    rows = sum(len(shard.values) for shard in numbers)
    highest, file = max((pc.max(shard.values).as_py(), str(shard.file)) for shard in numbers)
    if highest >= rows:
        raise UserError(f"{file} has the label {highest} in {rows} rows: expected class numbers from 0, or class names")
    return [str(number) for number in range(highest + 1)]


def check_names(shards: Sequence[ShardLabels], classes: list[str]) -> list[str]:
    """Every file that stores names stores these. -> what is to be told of those that store none.

    Raises:
        UserError: a file with other names, or the same in another order.
    """
    named = next((shard for shard in shards if shard.names is not None), None)
    silent = []
    for shard in shards:
        if shard.names is not None and shard.names != classes:
            assert named is not None
            raise UserError(
                f"{shard.file} numbers its classes {listing(shard.names)}, but {named.file} "
                f"{listing(classes)}: take the files of one set"
            )
        if named and shard.names is None and not shard.is_text and len(shard.values):
            silent.append(shard.file.name)
    if not silent:
        return []
    return [f"{len(silent)} files store no class names ({listing(silent)}): their numbers are read as the others'"]


def class_names(file: Path, schema: pa.Schema, column: str) -> list[str] | None:
    """The names that the `datasets` library stored for a ClassLabel column, if it did."""
    stored: Any = (schema.metadata or {}).get(b"huggingface")
    try:
        for key in ("info", "features", column, "names"):
            stored = (json.loads(stored) if isinstance(stored, bytes) else stored or {}).get(key)
    except (ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"{file} has metadata of `datasets` that is not as it writes it: {error}") from error
    if stored is None:
        return None
    if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
        raise UserError(f"{file} stores {str(stored)[:60]} as the names of its classes: expected a list of names")
    if twice := [name for name, times in Counter(stored).items() if times > 1]:
        raise UserError(f"{file} stores the class names {listing(twice)} more than once: give each class its own")
    return stored


def read_column(file: Path, column: str) -> pa.ChunkedArray:
    """Raises UserError for a damaged file."""
    try:
        # one thread: Arrow's pool does not survive the fork into a worker
        return pq.read_table(file, columns=[column], memory_map=True, use_threads=False).column(column)
    except (pa.ArrowException, OSError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged: {str(error).splitlines()[0]}")


def read_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Parquet file: {error}") from error


def is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values; pandas stores categories as a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
