"""A timm model by name, with errors that a person can act on."""

import difflib
from typing import Any

import timm
from torch import nn

import longvision.models  # noqa: F401 registers ours
from longvision.models.checkpoints import read_metadata


def create_backbone(
    name: str,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """timm.create_model for an image size. Raises ValueError for a name that does not exist, with those near it."""
    if not timm.is_model(name):
        near = nearest_models(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "`longvision models` lists those there are"
        raise ValueError(f"unknown model {name!r}: {hint}")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels, **(args or {})}
    if isinstance(pretrained, str):
        options.update(pretrained=True, pretrained_cfg_overlay={"file": pretrained, **_source(pretrained)})
    elif pretrained:
        options["pretrained"] = True
    return _create(name, {"img_size": size, **options})


def _source(path: str) -> dict[str, Any]:
    """What timm has to know of a run's file to tell whether its head and its first filters fit."""
    if not path.endswith(".safetensors"):
        return {}
    metadata = read_metadata(path)
    if "classes" not in metadata or "preprocess" not in metadata:
        return {}
    preprocess = metadata["preprocess"]
    return {"num_classes": len(metadata["classes"]), "input_size": (preprocess["channels"], *preprocess["size"])}


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        if "img_size" in options and "img_size" in str(error):  # convolutional models take images of any size
            return _create(name, {key: value for key, value in options.items() if key != "img_size"})
        raise ValueError(f"model {name} does not take these --model.args: {error}") from error
    except RuntimeError as error:  # no weights to download, or weights that do not fit
        raise ValueError(f"model {name}: {error}") from error


def nearest_models(name: str, count: int = 3) -> list[str]:
    """Registered names near a mistyped one, ours first; what is missing at the end of a name weighs nothing."""
    ours = set(timm.list_models(module="vim"))

    def likeness(known: str) -> float:
        start = difflib.SequenceMatcher(None, name, known[: len(name) + 1]).ratio()
        return start + 0.1 * (known in ours) + 0.1 * difflib.SequenceMatcher(None, name, known).ratio()

    ranked = sorted(timm.list_models(), key=likeness, reverse=True)
    return [known for known in ranked[:count] if likeness(known) > 0.75]
