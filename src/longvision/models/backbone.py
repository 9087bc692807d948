"""A timm model by name, as a classifier or for its maps, with errors that a person can act on."""

import difflib
from typing import Any

import timm
import torch
from timm.models._features import FeatureDictNet, FeatureHookNet, FeatureListNet
from torch import nn

from longvision.files import read_metadata
from longvision.models.pyramid import BASES, STRIDES, FeaturePyramid, pyramid_name


def create_backbone(
    name: str,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """timm.create_model for an image size. Raises ValueError for a name that does not exist, with those near it."""
    _check_exists(name)
    if name.partition(".")[0].removesuffix("_pyramid") in BASES and "_pyramid" in name:
        raise ValueError(f"model {name} gives maps and no classes: choose {name.replace('_pyramid', '')}")
    options = {"num_classes": num_classes, "in_chans": channels, **(args or {}), **pretrained_options(pretrained)}
    return _create(name, {"img_size": size, **options})


def create_features(
    name: str,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
    strides: tuple[int, ...] = STRIDES,
) -> nn.Module:
    """timm's `features_only` model that returns a list of maps at `strides`, finest first.

    A backbone of one stride, a Vim or a plain vision transformer, gets the pyramid that its name with `_pyramid` has.
    `feature_info` tells the maps' channels. Raises ValueError as above, and for a backbone without such maps.
    """
    name = dense_name(name)
    with torch.device("meta"):
        maps: Any = _create(name, {"features_only": True, **(args or {})})
    there = maps.feature_info.reduction()
    if missing := [stride for stride in strides if stride not in there]:
        raise ValueError(f"model {name} has maps of strides {there}, and none of stride {missing[0]}: choose another")
    options = {"in_chans": channels, **(args or {}), **pretrained_options(pretrained)}
    if getattr(maps, "output_fmt", None) == "NHWC":  # Swin's kind: timm turns them where it gets them one by one
        options["feature_cls"] = "getter"
    indices = [there.index(stride) for stride in strides]
    return _create(name, {"img_size": size, "features_only": True, "out_indices": indices, **options})


def dense_name(name: str) -> str:
    """The timm name under which a backbone gives maps of several strides. Raises ValueError for an unknown one."""
    _check_exists(name)
    return pyramid_name(name) or name


def backbone_of(model: nn.Module) -> nn.Module | None:
    """timm's model inside one that has a head on it, or the model itself where it is timm's; None where none is."""
    for module in model.modules():
        if isinstance(module, FeaturePyramid):
            return module.base
        if hasattr(module, "group_matcher") or isinstance(module, FeatureListNet | FeatureDictNet | FeatureHookNet):
            return module
    return None


def pretrained_options(pretrained: bool | str) -> dict[str, Any]:
    """For timm.create_model: weights from a file, those that timm knows, or none."""
    if isinstance(pretrained, str):
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": pretrained, **_source(pretrained)}}
    return {"pretrained": True} if pretrained else {}


def _check_exists(name: str) -> None:
    if not timm.is_model(name):
        near = nearest_models(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "`longvision models` lists those there are"
        raise ValueError(f"unknown model {name!r}: {hint}")


def _source(path: str) -> dict[str, Any]:
    """What timm has to know of a run's file to tell whether its head and its first filters fit."""
    if not path.endswith(".safetensors"):
        return {}
    metadata = read_metadata(path)
    if (task := metadata.get("task", "classification")) != "classification":
        raise ValueError(
            f"{path} is a model for {task}, its head included: give the weights of a backbone alone, released ones or "
            "those of a classification run"
        )
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
