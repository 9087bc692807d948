"""Which registered model of ours a set of weights belongs to: the nearest by the names and shapes of its tensors."""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from longvision.errors import UserError
from longvision.models.registered import kind_of
from longvision.models.weights.fit import Weights, differences, fitted


@dataclass(frozen=True)
class Match:
    """A registered model.

    Args:
        name: with a tag where it has several.
        differ: what of the weights it does not take, a phrase a tensor.
        is_near: whether they share half of their tensors, by name and shape.
    """

    name: str
    differ: list[str]
    is_near: bool


@dataclass(frozen=True)
class Identity:
    """A registered name, and the arguments of timm.create_model beside it, as text."""

    name: str
    num_classes: int
    arguments: str


def identify(weights: Weights, path: str) -> Identity:
    """Raises UserError for weights that no registered model of ours has."""
    match = nearest(weights)
    if match is None:
        kinds = ", ".join(kind.__name__ for kind in _families())
        raise UserError(f"{path} is not a checkpoint of a {kinds} or DETR: it does not have their tensors")
    model = _empty(match.name)
    if match.differ:
        sizes_first = sorted(match.differ, key=lambda phrase: "the model's is" not in phrase)
        more = f" and {len(match.differ) - 3} more" if len(match.differ) > 3 else ""
        raise UserError(
            f"{path} is of none of the registered models; of the nearest, {match.name}, differ: "
            f"{'; '.join(sizes_first[:3])}{more}: load it with longvision.models.{type(model).__name__}(…)"
        )
    weights, cfg = model.from_released(weights), model.pretrained_cfg
    head = weights.get(f"{model.head_name}.weight")
    found = {
        "num_classes": 0 if head is None else len(head),
        "in_chans": weights[f"{cfg['first_conv']}.weight"].shape[1],
    }
    usual = {"num_classes": cfg["num_classes"], "in_chans": cfg["input_size"][0]}
    others = "".join(f", {key}={value}" for key, value in found.items() if value != usual[key])
    return Identity(match.name, found["num_classes"], others)


def nearest(weights: Weights) -> Match | None:
    """Of the family that has the most of their names the model that shares the most tensors with them, by name and
    shape; None where no family has half of the names."""
    families = _families()
    alike = {family[0]: _alike(weights, family[0]) for family in families.values()}
    family = max(families.values(), key=lambda family: alike[family[0]])
    if 2 * alike[family[0]][0] < len(_outline(weights)):
        return None
    shared = {name: _shared(weights, name) for name in family}
    name = max(family, key=shared.__getitem__)
    return Match(name, _differences(weights, _empty(name)), shared[name][0] >= 0.5)


@functools.cache
def _families() -> dict[type[nn.Module], list[str]]:
    """Class -> the names of its models, with a tag where there are several."""
    from longvision.models import NAMES  # whose modules import this one

    families: dict[type[nn.Module], list[str]] = {}
    for name in NAMES:
        tagged = timm.list_models(f"{name}.*", include_tags=True)
        families.setdefault(kind_of(name), []).extend(tagged if len(tagged) > 1 else [name])
    return families


@functools.cache
def _empty(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


@functools.cache
def _tensors(name: str) -> Weights:
    return _empty(name).state_dict()


def _alike(weights: Weights, name: str) -> tuple[int, float]:
    """How many names, whatever the numbers in them, a file and a model have in common, and as a share of all."""
    own, theirs = _outline(_tensors(name)), _outline(_empty(name).from_released(weights))
    return len(own & theirs), len(own & theirs) / len(own | theirs)


def _outline(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d+", "0", name) for name in names}


def _shared(weights: Weights, name: str) -> tuple[float, int]:
    """The share of the tensors of a file and a model that both have, and, for where it is none, how near they are in
    size."""
    own, theirs = _tensors(name), _empty(name).from_released(weights)
    alike = sum(key in own and own[key].shape == w.shape for key, w in theirs.items())
    sizes = [sum(tensor.numel() for tensor in there.values()) for there in (own, theirs)]
    return alike / len(own.keys() | theirs.keys()), -abs(sizes[0] - sizes[1])


def _differences(weights: Weights, model: Any) -> list[str]:
    """What of them the model does not take, made for as many classes and channels as they are, or without a head."""
    own, heads = model.state_dict(), [f"{model.head_name}.{kind}" for kind in ("weight", "bias")]
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    try:
        found = fitted(weights, model)
    except UserError as error:  # positions that fill no grid
        return [str(error)]
    if heads[0] not in found or found[heads[0]].shape[1:] == own[heads[0]].shape[1:]:
        found = {**found, **{name: own[name] for name in heads}}
    if first in found and found[first].ndim == 4 and found[first][:, :1].shape == own[first][:, :1].shape:
        found = {**found, first: own[first]}
    return differences(found, model)
