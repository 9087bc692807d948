"""What a set says of itself, printed the same way by every command that opens one."""

from collections.abc import Iterable
from typing import Any

from longvision.text import one_line


def print_notes(source: Any) -> None:
    """A line each, every one once."""
    tell(dict.fromkeys(source.notes))


def tell(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {one_line(note)}")
