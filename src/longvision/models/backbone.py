"""A timm model by name, as a classifier or for its maps, with errors that a person can act on."""

import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import timm
import torch
from timm.models._features import FeatureDictNet, FeatureHookNet, FeatureListNet
from torch import nn

from longvision.errors import MissingFileError, UserError
from longvision.files import read_metadata
from longvision.grid import check_stem
from longvision.layers import PatchEmbed
from longvision.models.base import Backbone
from longvision.models.nested import CELL, NestedMaps, needed_maps, needs_nesting
from longvision.models.pyramid import STRIDES, SUFFIX, FeaturePyramid, has_pyramid, register_pyramid
from longvision.models.registered import is_ours, kind_of
from longvision.models.weights.files import other_model
from longvision.models.weights.of_timm import checked, classes_of
from longvision.names import did_you_mean


def create_backbone(
    name: str,
    num_classes: int,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """timm.create_model for an image size. Raises UserError for a name that does not exist, with those near it."""
    check_exists(name)
    if name.partition(".")[0].endswith(SUFFIX):
        raise UserError(f"model {name} gives maps and no classes: choose {name.replace(SUFFIX, '')}")
    options = {"num_classes": num_classes, "in_chans": channels, **(args or {}), **pretrained_options(pretrained)}
    return _create(name, size, options)


def create_features(
    name: str,
    channels: int,
    size: tuple[int, int],
    pretrained: bool | str = False,
    args: dict[str, Any] | None = None,
    strides: tuple[int, ...] = STRIDES,
) -> nn.Module:
    """timm's `features_only` model that returns a list of maps at `strides`, finest first.

    A backbone of one stride, a Vim or a plain vision transformer, gets the pyramid that its name with `_pyramid` has;
    EfficientViT and MobileViT v2, whose maps are at other strides or of other sizes, get `NestedMaps`.
    `feature_info` tells the maps' channels. Raises UserError as above, and for a backbone without such maps.
    """
    name = dense_name(name)
    with torch.device("meta"):
        maps: Any = _create(name, None, {"features_only": True, **(args or {})})
    there = maps.feature_info.reduction()
    options = {"in_chans": channels, **(args or {}), **pretrained_options(pretrained)}
    if needs_nesting(maps):
        indices = needed_maps(there, strides)
        padded = size[0] + -size[0] % CELL, size[1] + -size[1] % CELL
        return NestedMaps(_create(name, padded, {"features_only": True, "out_indices": indices, **options}), strides)
    if missing := [stride for stride in strides if stride not in there]:
        raise UserError(f"model {name} has maps of strides {there}, and none of stride {missing[0]}: choose another")
    if getattr(maps, "output_fmt", None) == "NHWC":  # Swin's kind: timm turns them where it gets them one by one
        options["feature_cls"] = "getter"
    indices = [there.index(stride) for stride in strides]
    return _create(name, size, {"features_only": True, "out_indices": indices, **options})


def dense_name(name: str) -> str:
    """The timm name under which a backbone gives maps of several strides. Raises UserError for an unknown one."""
    check_exists(name)
    return register_pyramid(name) if has_pyramid(name) else name


def backbone_of(model: nn.Module) -> nn.Module | None:
    """timm's model inside one that has a head on it, or the model itself where it is timm's; None where none is."""
    for module in model.modules():
        if isinstance(module, FeaturePyramid):
            return module.base
        if hasattr(module, "group_matcher") or isinstance(module, FeatureListNet | FeatureDictNet | FeatureHookNet):
            return module
    return None


def free_patch(model: nn.Module, option: str) -> int:
    """Side of the patches, pixels, of a model that takes images of every size in whole patches.

    Raises UserError, which names the `option` that asks for it, for a model that does not.
    """
    patches: Any = getattr(model, "patch_embed", None)
    if isinstance(patches, timm.layers.PatchEmbed) and not patches.strict_img_size:
        return int(patches.patch_size[0])
    if isinstance(patches, PatchEmbed) and patches.patch == patches.stride:
        return patches.patch
    raise UserError(
        f"{option}: {type(model).__name__} does not take images of every size in patches that do not overlap: choose "
        "NaViT, Vim or Mamba-Reg, or one of timm's vision transformers with --model.args.dynamic_img_size true"
    )


def checkpoint_activations(model: nn.Module) -> None:
    """Let the backbone inside keep each block's input alone for the backward pass, and compute the rest again.

    Raises UserError for a backbone that cannot.
    """
    backbone: Any = backbone_of(model) or model
    try:
        backbone.set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:  # as timm says that a model cannot
        raise UserError(
            f"{type(backbone).__name__} cannot compute its activations again: leave activation checkpointing out"
        ) from error


def pretrained_options(pretrained: bool | str) -> dict[str, Any]:
    """For timm.create_model: weights from a file, those that timm knows, or none. Raises MissingFileError."""
    if isinstance(pretrained, str):
        if not os.path.isfile(pretrained):
            raise MissingFileError(f"{pretrained} is not a file: expected weights (.safetensors, .pth, .npz)")
        # timm reads ViT's original files by a way of their own.
        original = {"custom_load": True} if pretrained.endswith(".npz") else {}
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": pretrained, **original, **_source(pretrained)}}
    return {"pretrained": True} if pretrained else {}


def create_sized(name: str, size: tuple[int, int], **options: Any) -> nn.Module:
    """timm.create_model for an image size, of which a convolutional model, which takes any, is not told.

    Raises UserError as `check_stem`.
    """
    check_stem(name, *size)
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)


def check_exists(name: str) -> None:
    """Raises UserError for a name that timm does not know, with those near it."""
    stem = name.partition(".")[0]
    if stem.endswith(SUFFIX) and has_pyramid(stem.removesuffix(SUFFIX)):
        register_pyramid(name.replace(SUFFIX, "", 1))
    if not timm.is_model(name):
        known = sorted(timm.list_models(), key=lambda known: not is_ours(known))  # ours first
        near = did_you_mean(stem, known, cutoff=0.7, otherwise="`longvision models '*'` lists those there are")
        raise UserError(f"unknown model {name!r}: {near}")


def _source(path: str) -> dict[str, Any]:
    """What timm has to know of a run's file to tell whether its head and its first filters fit."""
    if not path.endswith(".safetensors"):
        return {}
    metadata = read_metadata(path)
    if (task := metadata.get("task", "classification")) != "classification":
        raise UserError(
            f"{path} is a model for {task}, its head included: give the weights of a backbone alone, released ones or "
            "those of a classification run"
        )
    if "head" in metadata:
        raise UserError(f"{path} is a model with memory, not a base for another: give the weights it was made from")
    if "classes" not in metadata or "preprocess" not in metadata:
        return {}
    preprocess = metadata["preprocess"]
    return {"num_classes": len(metadata["classes"]), "input_size": (preprocess["channels"], *preprocess["size"])}


def _create(name: str, size: tuple[int, int] | None, options: dict[str, Any]) -> nn.Module:
    """An argument, a size or weights that do not fit are the user's to mend; whatever else fails stays as it is."""
    weights, cfg = options.get("pretrained", False), timm.get_pretrained_cfg(name)
    if weights and "pretrained_cfg_overlay" not in options and not (cfg and cfg.has_weights):
        raise UserError(f"model {name} has no pretrained weights: leave pretrained out, or give a file")
    overlay = options.get("pretrained_cfg_overlay", {})
    _check_positions(name, size, overlay)
    options, check = _of_timm(name, cfg, options) if "file" in overlay else (options, nullcontext())
    try:
        with check:
            return create_sized(name, size, **options) if size else timm.create_model(name, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise UserError(f"model {name} has no stochastic depth: leave it out, --model.drop_path 0") from error
        raise UserError(f"model {name} does not take these --model.args: {error}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"model {name}: {error}") from error
    except AssertionError as error:  # timm's, often without a word
        at = f" for images of {size[0]}x{size[1]}" if size else ""
        raise UserError(
            f"model {name} cannot be made{at} with these --model.args: {error or 'timm asserts'}"
        ) from error
    except OSError as error:
        if weights:
            raise UserError(f"the weights of {name} cannot be read: {error}") from error
        raise
    except (AttributeError, KeyError, RuntimeError) as error:
        if overlay.get("custom_load"):
            raise UserError(f"{overlay['file']} does not hold weights of model {name}: {error}") from error
        if "loading state_dict" in str(error):
            whose, base = overlay.get("file", f"what timm has for {name}"), name.partition(".")[0].removesuffix(SUFFIX)
            raise other_model(whose, _differences(str(error)), base) from error
        raise


def _of_timm(name: str, cfg: Any, options: dict[str, Any]) -> tuple[dict[str, Any], AbstractContextManager[None]]:
    """For a file that timm reads: with the classes that it has, which timm would take for as many as its own weights
    have, and a check of what is loaded."""
    overlay, base = options["pretrained_cfg_overlay"], name.partition(".")[0].removesuffix(SUFFIX)
    if overlay.get("custom_load") or issubclass(kind_of(base), Backbone):
        return options, nullcontext()
    head = cfg.classifier if cfg and cfg.classifier else ()
    heads = (head,) if isinstance(head, str) else head
    classes = overlay.get("num_classes") or classes_of(overlay["file"], heads)
    if classes is not None:
        options = {**options, "pretrained_cfg_overlay": {**overlay, "num_classes": classes}}
    wanted = 0 if options.get("features_only") else options.get("num_classes", 0)
    return options, checked(overlay["file"], base, heads, classes, wanted)


def _differences(said: str) -> list[str]:
    """Of torch's words about a state_dict that does not fit, in which each kind has a line with all names."""
    found = []
    for line in said.splitlines()[1:]:
        names = re.findall(r'"([^"]+)"', line)
        kind = "is unknown to the model" if "Unexpected key" in line else "is missing"
        found += [f"{name} {kind}" for name in names] or [line.strip().removeprefix("size mismatch for ").rstrip(".")]
    return found


def _check_positions(name: str, size: tuple[int, int] | None, overlay: dict[str, Any]) -> None:
    """Raises UserError for a run of a hybrid on images that were not square, which goes on at another size: timm, which
    looks for patches in the file, would take its positions for a square's."""
    trained = overlay.get("input_size", ())[1:]
    if len(set(trained)) < 2 or trained == size:
        return
    if timm.models.is_model_in_modules(name.partition(".")[0], ("vision_transformer_hybrid",)):
        high, wide = trained
        raise UserError(
            f"{overlay['file']} was trained on images of {high}x{wide}: timm resamples the positions of a hybrid from "
            f"square images alone; go on at {high}x{wide}, or begin from other weights"
        )
