"""How alike the attention maps of a model's layers, and of its heads, are (DeepViT, arXiv 2103.11886, equation 2); of a
Vim, the hidden attention of its scans."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from longvision.errors import UserError
from longvision.explain.attention import attention_layers, watched_attention
from longvision.explain.cascaded import cascaded_layers, watched_cascades
from longvision.explain.finding import Finding, as_csv
from longvision.explain.scans import scan_layers, watched_scans
from longvision.inference.predictor import Predictor
from longvision.models.memory import MemoryTasks
from longvision.viz.charts import draw_similarity

MEMORY = 2**30  # bytes for the maps of one image: above, layers are compared with the one before alone
GROUPS = 8  # of a scan's channels, which stand for heads


@dataclass
class Similarity:
    """Of L layers, averaged over images, heads and tokens; NaN for what was not compared.

    Args:
        layers_LL: cosine of the maps of two layers: of column t of one head in both, which says how much each token
            reads of token t.
        heads_L: cosine of the same columns of two heads of one layer, averaged over all pairs of heads.
        similar_L: the share of the columns whose cosine with those of the layer before reaches the threshold.
    """

    layers_LL: np.ndarray
    heads_L: np.ndarray
    similar_L: np.ndarray

    def adjacent(self) -> np.ndarray:
        """(L - 1,): each layer's cosine with the one before."""
        return np.diagonal(self.layers_LL, 1)

    def similar_layers(self, threshold: float) -> float:
        """The share of layers, of those that have one before, whose mean cosine with it reaches the threshold."""
        known = self.adjacent()[np.isfinite(self.adjacent())]
        return float((known >= threshold).mean()) if len(known) else float("nan")


@dataclass
class SimilarityMeter:
    """Adds up cosines while maps come in, layer by layer, image after image.

    Args:
        layers: how many there are.
        threshold: cosine from which two columns are similar.
        memory: bytes that the maps of all layers of one image may take to be compared all with all.
    """

    layers: int
    threshold: float = 0.9
    memory: int = MEMORY
    _held: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._sums_LL, self._counts_LL = (np.zeros((self.layers, self.layers)) for _ in range(2))
        self._heads_2L, self._similar_2L = (np.zeros((2, self.layers)) for _ in range(2))  # sums, and of how many

    def add(self, number: int, map_BHMM: Tensor) -> None:
        """The map of one layer; the first layer's begins the next images."""
        unit_BHMM = F.normalize(map_BHMM.float(), dim=-2)
        if number == 0:
            self._held.clear()
        elif unit_BHMM.nbytes * self.layers > self.memory:
            self._held = {key: held for key, held in self._held.items() if key == number - 1}
        for other, held_BHMM in self._held.items():
            if held_BHMM.shape != unit_BHMM.shape:
                continue
            cosine_BHM = (held_BHMM * unit_BHMM).sum(-2)
            self._count(other, number, float(cosine_BHM.mean()))
            if other == number - 1:
                self._similar_2L[:, number] += float((cosine_BHM >= self.threshold).float().mean()), 1
        self._held[number] = unit_BHMM
        self._count(number, number, 1.0)
        heads = unit_BHMM.shape[1]
        if heads > 1:  # |sum of H unit vectors|² is H and twice the sum of the cosines of all pairs
            squares = unit_BHMM.sum(1).square().sum(-2).mean()
            self._heads_2L[:, number] += (float(squares) - heads) / (heads * (heads - 1)), 1

    def _count(self, layer: int, other: int, cosine: float) -> None:
        for pair in {(layer, other), (other, layer)}:
            self._sums_LL[pair] += cosine
            self._counts_LL[pair] += 1

    def result(self) -> Similarity:
        """Of all that was added."""
        with np.errstate(invalid="ignore"):
            heads_L, similar_L = (sums / counts for sums, counts in (self._heads_2L, self._similar_2L))
            return Similarity(self._sums_LL / self._counts_LL, heads_L, similar_L)


def explain_similarity(
    predictor: Predictor, images: Sequence[Path], threshold: float = 0.9, heads: int | None = None
) -> Iterator[Finding]:
    """For `longvision explain`. Of a model with tasks beside a base, the base; under a head, the backbone.

    Raises UserError for a model that has neither attention maps nor scans to compare."""
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: expected a cosine, above 0 and at most 1")
    alone, model, whose = copy.copy(predictor), predictor.model, ""
    alone.batch = 1
    if isinstance(model, MemoryTasks):
        alone.model, whose = model.base, "of the base, without its tasks: "
    elif predictor.description.task != "classification":
        whose = "of the backbone, without its head: "
    names, watched = _layers(alone, heads)
    meter = SimilarityMeter(len(names), threshold)
    with watched(meter.add):
        for _ in alone.stream(images):
            pass
    found, title = meter.result(), predictor.description.architecture
    draw = partial(draw_similarity, found.layers_LL, found.heads_L, found.similar_L, threshold, title=title)
    yield Finding(
        f"{whose}{_sentence(found, len(images), threshold)}",
        {"similarity.csv": as_csv(_rows(found, names)), "similarity.png": draw},
    )


def _layers(predictor: Predictor, heads: int | None) -> tuple[list[str], Callable[..., Any]]:
    """The names of the layers that have maps, and what watches them."""
    model, name = predictor.model, predictor.description.architecture
    attention, scans, watch = attention_layers(model), scan_layers(model), watched_attention
    if cascades := cascaded_layers(model):
        attention, watch = cascades, watched_cascades
    if max(len(attention), len(scans)) < 2:
        raise UserError(
            f"{name} has {max(len(attention), len(scans))} layers that can be compared, expected two or more: the "
            "attention of a vision transformer, or the scans of a Vim or a Mamba-Reg"
        )
    if len(attention) >= len(scans):
        if heads is not None:
            raise UserError(f"--heads {heads} means nothing to {name}: the heads of its attention are compared")
        return list(attention), partial(watch, model)
    heads, channels = GROUPS if heads is None else heads, next(iter(scans.values())).inner
    if heads < 1 or channels % heads:
        raise UserError(
            f"--heads {heads}: expected a number of groups that the {channels} channels of a scan of {name} divide into"
        )
    return list(scans), partial(watched_scans, model, heads=heads)


def _sentence(found: Similarity, images: int, threshold: float) -> str:
    adjacent, heads = (values[np.isfinite(values)] for values in (found.adjacent(), found.heads_L))
    of_layers = "no two adjacent layers have maps of one shape"
    if len(adjacent):
        of_layers = (
            f"adjacent layers' maps have a cosine of {adjacent.mean():.3f} on average and {adjacent.max():.3f} at "
            f"most; {found.similar_layers(threshold):.0%} of the layers are similar (cosine from {threshold:g}) to the "
            "one before"
        )
    of_heads = f"heads of one layer have {heads.mean():.3f}" if len(heads) else "no layer has several heads"
    return f"over {images} image{'s' * (images != 1)}, {of_layers}; {of_heads}"


def _rows(found: Similarity, names: Sequence[str]) -> list[dict[str, object]]:
    """A row a layer: its cosine with each layer, and of its heads with each other."""
    numbers = range(len(names))
    return [
        {"layer": number, "module": names[number], "heads": f"{found.heads_L[number]:.6f}"}
        | {"similar": f"{found.similar_L[number]:.6f}"}
        | {f"with_{other}": f"{found.layers_LL[number, other]:.6f}" for other in numbers}
        for number in numbers
    ]
