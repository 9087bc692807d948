"""What the readers of class files have in common: entries of a file, and how a mistake in one is told."""

from typing import NamedTuple

from longvision.types import Colour


class Entry(NamedTuple):
    """A class: its name, the line it stands in, its colour and its value in masks where the file gives them."""

    name: str
    line: int
    colour: Colour | None = None
    value: int | None = None


class Mistake(Exception):
    """In a line, or in the file as a whole, whose name whoever reads it puts before."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line
