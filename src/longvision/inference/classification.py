"""Classifiers: images to probabilities."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longvision.inference.results import ClassResult, LabelResult
from longvision.inference.task import Named, TaskPredictor
from longvision.models.backbone import create_backbone


class ClassificationPredictor(TaskPredictor):
    """Of a model: images (B, C, H, W) -> logits (B, K)."""

    batch = 16
    if_too_large = "make it smaller"

    def create(self) -> nn.Module:
        about, shape = self.description, self.description.input
        return create_backbone(about.architecture, len(about.classes), shape.channels, shape.size, args=about.args)

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> list[ClassResult]:
        logits_BK = model(torch.stack(images)).float()
        several = self.description.multilabel
        shares_BK = (logits_BK.sigmoid() if several else logits_BK.softmax(1)).cpu().numpy()
        made = LabelResult if several else ClassResult
        return [made(*source, self.classes, shares_K) for source, shares_K in zip(inputs, shares_BK, strict=True)]
