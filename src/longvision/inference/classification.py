"""Classifiers: images to probabilities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.inference.budget import milliseconds_of, most_tokens
from longvision.inference.results import ClassResult, LabelResult
from longvision.inference.task import Named, TaskPredictor
from longvision.models.backbone import free_patch
from longvision.models.memory import create_finetuned

LARGEST = 2  # sides of the training images, that a budget of time is spent on


class ClassificationPredictor(TaskPredictor):
    """Of a model: images (B, C, H, W) -> logits (B, K)."""

    batch = 16
    if_too_large = "make it smaller"

    def limit_tokens(self, model: nn.Module, tokens: int | None, budget_ms: float | None) -> float | None:
        spec, device, milliseconds = self.description.input, next(model.parameters()).device, None
        patch = free_patch(model, "tokens" if budget_ms is None else "budget_ms")

        def measure(side: int) -> float:
            pixels = side * patch
            return milliseconds_of(model, torch.zeros(1, spec.channels, pixels, pixels, device=device))

        if budget_ms is not None:
            if not budget_ms > 0:  # nor is nan
                raise UserError(f"budget_ms {budget_ms}: expected milliseconds an image, more than 0")
            trained = max(1, round(math.sqrt(spec.size[0] * spec.size[1]) / patch))
            tokens, milliseconds = most_tokens(budget_ms, LARGEST * trained, measure)
        assert tokens is not None
        self.description = replace(self.description, input=spec.within(tokens, patch))
        return milliseconds

    def creator(self) -> Callable[..., nn.Module]:
        return create_finetuned

    def predict(self, model: Any, images: list[Tensor], inputs: Sequence[Named], batch: int) -> list[ClassResult]:
        logits_BK = model(torch.stack(images)).float()
        several = self.description.multilabel
        shares_BK = (logits_BK.sigmoid() if several else logits_BK.softmax(1)).cpu().numpy()
        made = LabelResult if several else ClassResult
        return [made(*source, self.classes, shares_K) for source, shares_K in zip(inputs, shares_BK, strict=True)]
