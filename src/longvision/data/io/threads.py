"""Reading many small files at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")

READERS = 8  # enough to hide the wait for a network disk


def in_threads(read: Callable[[Given], Found], items: Iterable[Given]) -> list[Found]:
    """`read` of each item, in their order."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read, items))
