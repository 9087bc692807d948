"""Reading many small files at once."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")

READERS = 8  # enough to hide the wait for a network disk
AT_ONCE = 1000  # a million that wait in line take more than a gigabyte


def in_threads(read: Callable[[Given], Found], items: Iterable[Given]) -> list[Found]:
    """`read` of each item, in their order."""
    return list(each_in_threads(read, items))


def each_in_threads(read: Callable[[Given], Found], items: Iterable[Given]) -> Iterator[Found]:
    """The same, one after another, so that somebody may watch."""
    rest = iter(items)
    with ThreadPoolExecutor(READERS) as readers:
        while some := list(islice(rest, AT_ONCE)):
            yield from readers.map(read, some)
