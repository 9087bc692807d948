"""Which models there are, read from the sources of timm and ours: importing them takes seconds, and a mistyped name
should not wait for it."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longvision.errors import UserError
from longvision.grid import grid_size
from longvision.names import did_you_mean
from longvision.types import Size


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


def check_size_of(configuration: Any) -> None:
    """Raises as `check_size`. Tasks other than classification pad images to whole cells of a pyramid."""
    if configuration.task == "classification":
        data = configuration.data
        for size in (data.input().size, *((side, side) for side in data.sizes)):
            check_size(configuration.model.name, configuration.model.args or {}, size)


def check_size(name: str, args: dict[str, Any], size: Size) -> None:
    """Raises UserError for an image size that does not divide into the patches of one of our models, or of timm's ViT
    or DeiT; others are not known here."""
    base = name.partition(".")[0]
    ours = re.fullmatch(r"(?:vim_[a-z]+|vit_nano|navit_[a-z]+)_patch(\d+)(?:_stride(\d+))?(?:_\d+)?|deepvit_\w+", base)
    sides = ours or re.match(r"(?:vit|deit3?)_\w*?patch(\d+)_()", base)
    if sides is None or args.get("pad" if ours else "dynamic_img_pad"):
        return
    if not ours and isinstance(args.get("patch_size"), list):  # timm takes two sides
        return
    patch = args.get("patch_size", int(sides[1] or 16))
    stride = (args.get("stride") or int(sides[2] or patch)) if ours else patch
    for key, value in {"patch_size": patch, "stride": stride}.items():
        if type(value) is not int or value < 1:
            raise UserError(f"--model.args.{key} {value!r}: expected a whole number, at least 1")
    timms = "--model.args.dynamic_img_size true --model.args.dynamic_img_pad true"
    grid_size(*size, patch, stride, to_pad="--model.args.pad true" if ours else timms)


def _sources() -> Iterator[str]:
    for package in ("longvision", "timm"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            yield from (file.read_text(encoding="utf-8") for file in sorted(Path(folder, "models").glob("*.py")))
