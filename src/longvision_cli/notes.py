"""What a set says of itself, printed the same way by every command that opens one."""

from typing import Any

from longvision.text import one_line


def print_notes(source: Any) -> None:
    """A line each, every one once."""
    for note in dict.fromkeys(source.notes):
        print(f"note: {one_line(note)}")
