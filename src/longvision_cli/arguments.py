"""Plain arguments, with errors in the same style as everywhere."""

import argparse
from difflib import get_close_matches
from typing import Any, NoReturn


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a mistake is a ValueError with the nearest names, and abbreviations are not guessed."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` says more")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise ValueError(unknown_option(unknown[0], list(self._option_string_actions)))
        return known


def unknown_option(given: str, options: list[str]) -> str:
    name = given.split("=")[0]
    if not name.startswith("-"):
        return f"{name!r} is one argument too many"
    by_name = {option.lstrip("-"): option for option in options}  # the dashes are what all share
    near = [by_name[match] for match in get_close_matches(name.lstrip("-"), by_name, n=3, cutoff=0.6)]
    return f"unknown option {name}: " + (f"did you mean {' or '.join(near)}?" if near else "see --help")
