"""Plain options, with mistakes told in the same way by every command, and dotted ones (`--data.size 64`) set apart."""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from longvision.errors import UserError
from longvision.names import did_you_mean
from longvision.types import Size


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a mistake is a UserError with the nearest names, and abbreviations are not guessed."""

    def __init__(self, **options: Any) -> None:
        self.options: list[str] = []
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        self.options += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` says more")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = self.parse_known_args(args, namespace)
        self.refuse(unknown)
        return known

    def refuse(self, unknown: Sequence[str], more: Iterable[str] = ()) -> None:
        """Raises UserError where words are left; `more` options than the parser's own are near ones too."""
        if not unknown:
            return
        name = unknown[0].split("=")[0]
        if name.startswith("-"):
            near = did_you_mean(name, [*self.options, *more], otherwise="--help lists those there are")
            raise UserError(f"unknown option {name}: {near}")
        raise UserError(f"{name!r} is one argument too many: options are written --name VALUE")


@dataclass(frozen=True)
class Words:
    """A command line, taken apart.

    Args:
        options: what the parser knows.
        dotted: (key, text) of each `--a.b TEXT` or `--a.b=TEXT`, in order.
        unknown: the words that are left.
    """

    parser: ArgumentParser
    options: argparse.Namespace
    dotted: list[tuple[str, str]]
    unknown: list[str]


def take_apart(parser: ArgumentParser, words: Sequence[str]) -> Words:
    """Raises UserError for a dotted option without a value, and as the parser does; unknown words are left."""
    plain: list[str] = []
    dotted: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        name, equals, text = word.partition("=")
        if not name.startswith("--") or "." not in name:
            plain.append(word)
            continue
        if not equals and (text := next(rest, "--")).startswith("--"):
            raise UserError(f"{name} has no value: write {name} VALUE")
        dotted.append((name[2:], text))
    options, unknown = parser.parse_known_args(plain)
    return Words(parser, options, dotted, unknown)


def parse_size(text: str | None) -> Size | None:
    """`--size`, (height, width). Raises UserError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or not int(match[1]) or match[2] == "0":
        raise UserError(f"--size {text!r} is no size: expected pixels, such as 512 or 480x640 (height x width)")
    return int(match[1]), int(match[2] or match[1])
