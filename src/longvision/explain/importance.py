"""How much each channel of attention and MLPs matters to the loss: first-order Taylor importance (arXiv 1906.10771),
with which EfficientViT's authors found out what attention wastes (arXiv 2305.07027, section 2.3).

A channel's importance is |weight · gradient|: what the loss would change by, to first order, if its weights were zero.
The products of all weights that make the channel are summed before the absolute value is taken, as the channel goes as
a whole, and batches are averaged.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GluMlp
from timm.models.efficientvit_msra import CascadedGroupAttention, ConvMlp
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.explain.finding import Finding, as_csv
from longvision.inference.predictor import Predictor
from longvision.models.pruned_efficientvit import Kept, full_widths
from longvision.viz.charts import draw_widths

Batches = Iterable[tuple[Any, Tensor]]  # images (B, C, H, W), or PackedImages, and targets
KINDS = {"q": "query", "k": "key", "v": "value", "ffn": "MLP"}
NOT_FINITE = "nothing can be ranked by it; expected a model that was trained, with finite weights"
UNITS = {"qk": "queries and keys", "v": "values", "ffn": "MLPs"}


@dataclass(frozen=True)
class Channels:
    """The channels of one kind in one layer, or in one of its heads.

    Args:
        layer: the module's name, as in `pruned_efficientvit.Widths` where there are such.
        kind: one of KINDS.
        weights: the parameters that make them, with the rows of each.
    """

    layer: str
    kind: str
    weights: tuple[tuple[nn.Parameter, slice], ...]

    def __len__(self) -> int:
        rows = self.weights[0][1]
        return rows.stop - rows.start


@dataclass(frozen=True)
class Importance:
    """Of each channel of one layer and kind, (C,)."""

    layer: str
    kind: str
    values_C: Tensor


def channels_of(model: nn.Module) -> list[Channels]:
    """Of an EfficientViT, or of a model with timm's plain attention and MLPs, in their order.

    Raises UserError for a model that has neither.
    """
    found = [channels for name, module in model.named_modules() for channels in _channels(name, module)]
    if not found:
        raise UserError(
            f"{type(model).__name__} has no queries, keys, values and MLPs that can be told apart: importance is "
            "measured of EfficientViT (efficientvit_m0 to _m5), timm's vision transformers, DeepViT and VMamba"
        )
    return found


def _channels(name: str, module: Any) -> Iterator[Channels]:
    if isinstance(module, CascadedGroupAttention):
        heads: Any = zip(module.qkvs, module.dws)
        for head, (all_, queries) in enumerate(heads):
            norm, layer, key = all_.bn, f"{name}.qkvs.{head}", len(queries.bn.weight)
            yield Channels(layer, "q", _made_by(queries.bn, 0, key))  # their convolution comes behind
            yield Channels(layer, "k", _made_by(norm, key, 2 * key))
            yield Channels(layer, "v", _made_by(norm, 2 * key, len(norm.weight)))
    elif isinstance(module, ConvMlp):
        yield Channels(name, "ffn", _made_by(module.pw1.bn, 0, len(module.pw1.bn.weight)))
    elif isinstance(qkv := getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads"):
        size = qkv.out_features // 3 // module.num_heads
        for head in range(module.num_heads):
            for number, kind in enumerate("qkv"):
                begin = (number * module.num_heads + head) * size
                yield Channels(f"{name}.qkv.{head}", kind, _made_by(qkv, begin, begin + size))
    elif isinstance(fc1 := getattr(module, "fc1", None), nn.Linear) and isinstance(module.fc2, nn.Linear):
        whole, made = fc1.out_features, module.fc2.in_features
        if whole == made:
            yield Channels(name, "ffn", _made_by(fc1, 0, whole))
        elif isinstance(module, GluMlp):  # a channel is a value times its gate, which stands in the other half
            yield Channels(name, "ffn", _made_by(fc1, *((0, made) if module.gate_last else (made, whole))))


def _made_by(layer: Any, begin: int, end: int) -> tuple[tuple[nn.Parameter, slice], ...]:
    """Scale and shift of a norm, which make its channels in evaluation, or rows and biases of a linear layer."""
    return tuple((weight, slice(begin, end)) for weight in (layer.weight, layer.bias) if weight is not None)


def measure_importance(model: nn.Module, batches: Batches, multilabel: bool = False) -> list[Importance]:
    """Of a classifier, by its loss over batches: targets are class numbers (B,), or 0 and 1, float (B, K), of images
    with any number of labels. The model is left in evaluation mode.

    Raises UserError for a model as `channels_of` does, where there are no batches, and for a loss or an importance that
    is not finite.
    """
    channels = channels_of(model.eval())
    sums = [torch.zeros(len(one)) for one in channels]
    weights = list({id(weight): weight for one in channels for weight, _ in one.weights}.values())
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    loss = F.binary_cross_entropy_with_logits if multilabel else F.cross_entropy
    device, count = weights[0].device, 0
    model.requires_grad_(False)  # EfficientViT keeps its attention biases from call to call, with their graph
    for weight in weights:
        weight.requires_grad_()
    try:
        with torch.enable_grad():
            for images, target in batches:
                value = loss(model(images.to(device)), target.to(device))
                if not value.isfinite():
                    raise UserError(f"the loss of batch {count + 1} is {value.item()}: {NOT_FINITE}")
                gradients = dict(zip(map(id, weights), torch.autograd.grad(value, weights)))
                for one, sum_C in zip(channels, sums):
                    sum_C += _of_batch(one, gradients).cpu()
                count += 1
    finally:
        for parameter, was in trained.items():
            parameter.requires_grad_(was)
    if not count:
        raise UserError("importance is measured over images, and there are none")
    if broken := [one for one, sum_C in zip(channels, sums) if not sum_C.isfinite().all()]:
        raise UserError(
            f"the importance of {KINDS[broken[0].kind]} channels of {broken[0].layer} is not finite, and so of "
            f"{len(broken)} of {len(channels)} layers and heads: {NOT_FINITE}"
        )
    return [Importance(one.layer, one.kind, sum_C / count) for one, sum_C in zip(channels, sums)]


def _of_batch(channels: Channels, gradients: dict[int, Tensor]) -> Tensor:
    """(C,)"""
    parts = [(weight.detach() * gradients[id(weight)])[rows] for weight, rows in channels.weights]
    return torch.stack([part.flatten(1).sum(1) if part.ndim > 1 else part for part in parts]).sum(0).abs()


@dataclass(frozen=True)
class Unit:
    """Channels that go together: a query's with its key's, a value's, an MLP's."""

    layer: str
    kind: str  # "qk", "v" or "ffn"
    values_C: Tensor


def units_of(found: list[Importance]) -> list[Unit]:
    """What is ranked. To first order a query's channel matters as much as its key's, since both are factors of one
    product; the mean of the two is taken."""
    by_kind = {(one.layer, one.kind): one.values_C for one in found}
    units = []
    for (layer, kind), values_C in by_kind.items():
        if kind == "q":
            units.append(Unit(layer, "qk", (values_C + by_kind[layer, "k"]) / 2))
        elif kind != "k":
            units.append(Unit(layer, kind, values_C))
    return units


def choose(units: list[Unit], keep: float) -> list[Tensor]:
    """Which channels are left of each unit, their numbers ascending: the most important of all layers together, so many
    that `keep` is their share, and of each layer, or head, at least one.

    Raises UserError for a share that is none, or too small for one each.
    """
    if not 0 < keep <= 1:
        raise UserError(f"--keep {keep:g}: expected a share of the channels, above 0 and up to 1")
    total = sum(len(unit.values_C) for unit in units)
    count = round(keep * total)
    if count < len(units):
        raise UserError(
            f"--keep {keep:g} leaves {count} of {total} channels, and {len(units)} heads and layers need one each: "
            f"keep at least {-(-1000 * len(units) // total) / 1000:g}"
        )
    ranks = [unit.values_C.double().clone() for unit in units]
    for rank_C in ranks:
        rank_C[rank_C.argmax()] = torch.inf  # never the last one
    order = torch.cat(ranks).argsort(descending=True, stable=True)
    left = torch.zeros(total, dtype=torch.bool)
    left[order[:count]] = True
    return [mask_C.nonzero()[:, 0] for mask_C in left.split([len(unit.values_C) for unit in units])]


def kept_channels(model: nn.Module, found: list[Importance], keep: float) -> Kept:
    """For `pruned_efficientvit.sliced`. Raises UserError as `choose`, and for a model that is no EfficientViT."""
    widths = full_widths(model)
    if not widths:
        raise UserError(
            f"{type(model).__name__} cannot be pruned: efficientvit_m0 to efficientvit_m5 can, which have heads of any "
            "width; `longvision explain RUN --method importance` shows what others could do without"
        )
    units = units_of(found)
    kept: Kept = {}
    for unit, left_C in zip(units, choose(units, keep)):
        kept.setdefault(unit.layer, []).append(left_C)  # queries and keys come before values
    return kept


def explain_importance(predictor: Predictor, batches: Batches, keep: float = 0.7) -> Iterator[Finding]:
    """For `longvision explain`: over batches of images and targets. Raises UserError as `measure_importance` and
    `choose`."""
    found = measure_importance(predictor.model, batches, predictor.description.multilabel)
    yield finding(found, keep, predictor.description.architecture)


def finding(found: list[Importance], keep: float, name: str) -> Finding:
    """What is left of each layer at a share of all channels. Raises UserError as `choose`."""
    units = units_of(found)
    left = choose(units, keep)
    bars = _by_layer(units, left)
    shares = [
        f"{kind} {sum(few for *_, few in layers) / sum(many for _, many, _ in layers):.0%}"
        for kind, layers in bars.items()
    ]
    title = f"{name}: channels that are left of each layer, in percent, where {keep:.0%} of all are kept"
    return Finding(
        f"of the {keep:.0%} most important channels of all layers together, these are kept: {', '.join(shares)}",
        {
            "importance.csv": as_csv(list(_rows(found, units, left))),
            "importance.png": partial(draw_widths, bars, title=title),
        },
    )


def _by_layer(units: list[Unit], left: list[Tensor]) -> dict[str, list[tuple[str, int, int]]]:
    """Of each kind the layers, heads together: (name, its channels, how many are left)."""
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for unit, left_C in zip(units, left):
        layer = re.sub(r"(\.mixer\.m)?(\.attn)?\.qkvs?\.\d+$|\.m$|\.mlp$", "", unit.layer)
        of_kind = counts.setdefault(UNITS[unit.kind], {})
        whole, few = of_kind.get(layer, (0, 0))
        of_kind[layer] = whole + len(unit.values_C), few + len(left_C)
    return {kind: [(layer, *both) for layer, both in layers.items()] for kind, layers in counts.items()}


def _rows(found: list[Importance], units: list[Unit], left: list[Tensor]) -> Iterator[dict[str, Any]]:
    """A row a channel."""
    kept = {(unit.layer, unit.kind): set(left_C.tolist()) for unit, left_C in zip(units, left)}
    for one in found:
        unit = "qk" if one.kind in "qk" else one.kind
        for channel, value in enumerate(one.values_C.tolist()):
            is_kept = channel in kept[one.layer, unit]
            yield {
                "layer": one.layer,
                "kind": KINDS[one.kind],
                "channel": channel,
                "importance": f"{value:.6g}",
                "kept": "yes" if is_kept else "no",
            }
