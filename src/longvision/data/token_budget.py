"""Evaluation of one model at another number of tokens an image."""

from typing import TYPE_CHECKING, Any

from longvision.data.packing import PackingConfig
from longvision.data.transforms.classification import ClassificationTransforms
from longvision.data.transforms.packing import PackedTransforms

if TYPE_CHECKING:
    from longvision.data.datamodule import DataModule


def evaluate_within(data: "DataModule", tokens: int, patch: int, packed: bool) -> None:
    """From now on the images that a classification evaluates keep their proportions and have at most `tokens` patches.

    `packed`: in packs, for a model that takes such; else one by one. `patch`: their side, pixels.
    """
    data.input = data.input.within(tokens, patch)
    augment: Any = data.augment
    kind = PackedTransforms if packed else ClassificationTransforms
    data.transforms = kind(augment, data.input, len(data.classes))
    packing = data.packing or PackingConfig()
    data.transforms.evaluation_batch = packing.evaluated_together(tokens) if packed else 1
