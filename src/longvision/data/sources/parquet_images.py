"""Encoded images out of Parquet files: of a small set in memory, of a large one in a file that is mapped into memory.

A row of Parquet cannot be read without its page, many rows compressed together. So images of a large set are written
once, uncompressed, into an Arrow file in the cache folder, of which a process holds no page of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longvision.cache import CACHE_VARIABLE, mark_used, place_of, remove_stale
from longvision.data.io.deep import AnyImage
from longvision.data.io.images import Channels, read_image
from longvision.data.problems import is_too_many
from longvision.data.sources.parquet_labels import damaged, plain
from longvision.errors import UnreadableImage, UserError
from longvision.files import written_beside

MOST_IN_MEMORY = 256 << 20  # bytes of a split's images
AT_ONCE = 16 << 20  # bytes that are read or written at once, as far as the files' sizes tell
SCHEMA = pa.schema([("image", pa.large_binary()), ("digest", pa.binary(12))])


class Shards:
    """The image column of one split's files, encoded.

    Worker processes share the one copy. A pickled `Shards` leaves it behind and opens the files where it lands. `notes`
    says where the images of a large set are.
    """

    def __init__(self, files: list[Path], column: str, channels: Channels, name: str, tolerated: float) -> None:
        self.files, self.column, self.channels, self.name, self.tolerated = files, column, channels, name, tolerated
        self.notes: list[str] = []

    @cached_property
    def table(self) -> pa.Table:
        """`SCHEMA`, a row an image. Raises UserError for damaged files, and for rows without images."""
        place = place_of("parquet", self.files, self.column, ".arrow")
        if place is not None and (found := _mapped(place)) is not None:
            return self._told(found, place)
        if (small := self._small()) is not None:
            return small
        try:
            if place is None:
                raise OSError("there is none")
            return self._told(self._cached(place), place)
        except OSError as error:
            table = pa.Table.from_batches(self._batches(), SCHEMA)
            self.notes.append(
                f"the images of {self.name}, {_gigabytes(table)}, are held in memory, as they cannot be cached in "
                f"{place.parent if place else 'a home folder'} ({error.strerror or error}): set {CACHE_VARIABLE} to a "
                "folder with room for them"
            )
            return table

    def _small(self) -> pa.Table | None:
        """None for a large set. The files tell it where they hold images alone, and none of them twice."""
        batches, size = [], 0
        if sum(file.stat().st_size for file in self.files) > MOST_IN_MEMORY:
            return None
        for batch in self._batches():
            batches.append(batch)
            if (size := size + batch.nbytes) > MOST_IN_MEMORY:
                return None
        return pa.Table.from_batches(batches, SCHEMA)

    def read(self, row_and_label: np.ndarray) -> tuple[AnyImage, int]:
        row, label = row_and_label.tolist()
        image, name = self.table["image"][row].as_py(), f"row {row} of {self.name}"
        if image is None:
            raise UnreadableImage(f"{name} has no image bytes")
        return read_image(image, self.channels, name), label

    def file(self, row_and_label: np.ndarray) -> bytes:
        """The encoded image."""
        return self.table["image"][int(row_and_label[0])].as_py()

    def window(self, row_and_label: np.ndarray) -> pa.BufferReader:
        """The same as a file, without a copy."""
        return pa.BufferReader(self.table["image"][int(row_and_label[0])].as_buffer() or b"")

    def digest(self, row: int) -> str:
        """Of an image's content."""
        return self.table["digest"][row].as_py().hex()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table"}

    def _cached(self, place: Path) -> pa.Table:
        """Written to the cache, unless another process does so meanwhile. Raises OSError where it cannot be."""
        place.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(place.parent):
            if (found := _mapped(place)) is not None:
                return found
            remove_stale(place)
            with (
                written_beside(place, overwrite=True) as beside,
                pa.OSFile(str(beside), "wb") as file,
                pa.ipc.new_file(file, SCHEMA) as writer,
            ):
                for batch in self._batches():
                    writer.write_batch(batch)
            pa.default_memory_pool().release_unused()
            found = _mapped(place)
        if found is None:
            raise OSError("it cannot be read back")
        return found

    def _told(self, table: pa.Table, place: Path) -> pa.Table:
        mark_used(place)
        self.notes.append(f"the images of {self.name}, {_gigabytes(table)}, are cached in {place}")
        return table

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Of `SCHEMA`, a few images each, file after file."""
        for file in self.files:
            missing = 0
            try:
                opened = pq.ParquetFile(file, memory_map=True)
                total = opened.metadata.num_rows
                rows = min(max(AT_ONCE * total // max(file.stat().st_size, 1), 1), 1000)
                # one thread: Arrow's pool does not survive the fork into a worker
                for batch in opened.iter_batches(rows, columns=[self.column], use_threads=False):
                    images = _encoded(batch.column(0))
                    missing += images.null_count
                    digests = [blake2b(image.as_buffer() or b"", digest_size=12).digest() for image in images]
                    yield pa.record_batch([images, pa.array(digests, pa.binary(12))], schema=SCHEMA)
            except (pa.ArrowException, OSError) as error:
                raise damaged(file, error) from error
            if is_too_many(missing, total, self.tolerated):  # a few are skipped when they are read
                raise UserError(
                    f"{file} has {missing} rows without image bytes: "
                    "store the encoded images themselves, not their paths, or drop the rows"
                )


def _encoded(values: pa.Array) -> pa.Array:
    """Of an image struct, its bytes; one type for all files; dictionaries of images are spelled out."""
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    return values.cast(plain(values.type)).cast(pa.large_binary())


def _mapped(place: Path) -> pa.Table | None:
    """None for what is not there, or is no such file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
    except (pa.ArrowException, OSError):
        return None
    return table if table.schema == SCHEMA else None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of processes that would write the same file. Where the system cannot say so each writes its own, and the last one
    stays."""
    with (folder / "lock").open("wb") as lock:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _gigabytes(table: pa.Table) -> str:
    return f"{table.nbytes / 1e9:.1f} GB"
