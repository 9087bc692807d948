"""Which models there are, read from the sources of timm and ours: importing them takes seconds, and a mistyped name
should not wait for it."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longvision.data.packing import check_trainer
from longvision.errors import UserError
from longvision.grid import check_stem, grid_size
from longvision.names import did_you_mean
from longvision.types import Size

OURS = re.compile(r"\w+_patch(?P<patch>\d+)(?:_stride(?P<stride>\d+))?(?:_\d+)?$|deepvit_")
TIMMS = re.compile(r"(?:vit|deit3?)_\w*?patch(?P<patch>\d+)_")
TO_PAD_TIMMS = "--model.args.dynamic_img_size true --model.args.dynamic_img_pad true"


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
    """Raises as `check_size`, and for packs that the model or its trainer does not take. Tasks other than
    classification pad images to whole cells of a pyramid."""
    name, args, data = configuration.model.name, configuration.model.args or {}, configuration.data
    packs = getattr(data, "pack", False)
    check_trainer(packs, data.sizes, configuration.trainer)
    if configuration.task != "classification":
        return
    size = data.input().size
    if packs:
        if _names_like(name) is OURS and (found := _patches_of(name, args, OURS)):
            data.check_model(*found, (size[0], *data.sizes))
        return
    for each in (size, *((side, side) for side in data.sizes)):
        check_size(name, args, each)


def check_size(name: str, args: dict[str, Any], size: Size, can_pad: bool = True) -> None:
    """Raises UserError for an image size that does not divide into the patches of one of our models, or of timm's ViT
    or DeiT, or that is below EfficientViT's; others are not known here. The sentence tells how to pad, if one can."""
    check_stem(name, *size)
    known = _names_like(name)
    pad, to_pad = ("pad", "--model.args.pad true") if known is OURS else ("dynamic_img_pad", TO_PAD_TIMMS)
    if (patches := _patches_of(name, args, known)) and not args.get(pad):
        grid_size(*size, *patches, to_pad=to_pad if can_pad else "")


def _names_like(name: str) -> re.Pattern[str]:
    """What tells the patches of a model of ours, or of timm's."""
    own = f"\ndef {name.partition('.')[0]}("
    return OURS if any(own in source for source in _sources("longvision")) else TIMMS


def _patches_of(name: str, args: dict[str, Any], known: re.Pattern[str]) -> tuple[int, int] | None:
    """Side and stride of a model's patches; None of a name that is not known. Raises UserError."""
    sides = known.match(name.partition(".")[0])
    if sides is None or (known is TIMMS and isinstance(args.get("patch_size"), list)):  # it takes two sides
        return None
    patch = args.get("patch_size", int(sides["patch"] or 16))
    stride = (args.get("stride") or int(sides["stride"] or patch)) if known is OURS else patch
    for key, value in {"patch_size": patch, "stride": stride}.items():
        if type(value) is not int or value < 1:
            raise UserError(f"--model.args.{key} {value!r}: expected a whole number, at least 1")
    return patch, stride


def size_notes(configuration: Any) -> list[str]:
    """What is to be told of image sizes, in a line or none: MobileViT attends to maps with even sides, and version 2
    leaves them so (timm#1865)."""
    name, data = configuration.model.name, configuration.data
    kind = re.match(r"mobilevit(v2)?_", name)
    if not kind or configuration.task != "classification":  # other tasks pad images
        return []
    sizes = dict.fromkeys([data.input().size, *((side, side) for side in data.sizes)])
    maps = {size: [tuple(-(-side // stride) for side in size) for stride in (8, 16, 32)] for size in sizes}
    uneven = {size: found for size, found in maps.items() if any(side % 2 for cells in found for side in cells)}
    if not uneven:
        return []
    what = "are rounded up to even sides" if kind[1] else "are stretched to even sides for attention, and back"
    shown = "; ".join(
        f"{height}x{width}, {_listed(found, 2)} for {_listed(found, 1)}" for (height, width), found in uneven.items()
    )
    return [f"maps of {name} {what}: of {shown}; sizes that divide by 64 need no such thing"]


def _listed(maps: list[tuple[int, ...]], multiple: int) -> str:
    return " ".join("x".join(str(side + -side % multiple) for side in cells) for cells in maps)


def _sources(*packages: str) -> Iterator[str]:
    for package in packages or ("longvision", "timm"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            yield from (file.read_text(encoding="utf-8") for file in sorted(Path(folder, "models").glob("*.py")))
