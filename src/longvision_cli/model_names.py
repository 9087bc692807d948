"""Which models there are, read from the sources of timm and ours: importing them takes seconds, and a mistyped name
should not wait for it."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from longvision.errors import UserError
from longvision_cli.names import did_you_mean


def model_names() -> list[str]:
    """Ours first."""
    return [name for source in _sources() for name in re.findall(r"^@register_model\ndef (\w+)", source, re.MULTILINE)]


def check_model(name: str) -> None:
    """Raises UserError for a name that neither timm nor this package has, with those near it."""
    base, known = name.partition(".")[0].removesuffix("_pyramid"), model_names()
    # A name of an earlier timm, or one that is registered in a loop, stands in quotes.
    if base not in known and not any(f"'{base}'" in source or f'"{base}"' in source for source in _sources()):
        near = did_you_mean(base, known, cutoff=0.7, otherwise="`longvision models '*'` lists those there are")
        raise UserError(f"unknown model {name!r}: {near}")


def _sources() -> Iterator[str]:
    for package in ("longvision", "timm"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            yield from (file.read_text(encoding="utf-8") for file in sorted(Path(folder, "models").glob("*.py")))
