"""A part of a file, read as if it were a file: no more of it than is asked for."""

import io
import os
from pathlib import Path
from typing import IO, Any


class Window(io.RawIOBase):
    """`size` bytes from `offset` on. Raises OSError where the file cannot be opened."""

    def __init__(self, path: str | Path, offset: int, size: int) -> None:
        self._file: IO[bytes] = open(path, "rb", buffering=0)  # noqa: SIM115
        self._offset, self._size, self._place = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        begins = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}
        self._place = max(0, begins[whence] + place)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        left = max(0, self._size - self._place)
        self._file.seek(self._offset + self._place)
        count: int = self._file.readinto(memoryview(buffer)[:left])  # type: ignore[attr-defined]
        self._place += count
        return count

    def close(self) -> None:
        if hasattr(self, "_file"):  # else it could not be opened
            self._file.close()
        super().close()
