"""A list that worker processes share: Python's own objects are copied, page by page, as soon as they are looked at."""

import pickle
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

Item = TypeVar("Item")


class SerializedList(Sequence[Item], Generic[Item]):
    """Items as bytes in one array. It gives a new copy of an item each time, and no slices."""

    def __init__(self, items: Iterable[Item]) -> None:
        packed = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self.ends = np.cumsum([len(item) for item in packed], dtype=np.int64)
        self.bytes = np.frombuffer(b"".join(packed), np.uint8)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]  # IndexError past the end, negative numbers from the end
        start = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[start : self.ends[index]].tobytes())
