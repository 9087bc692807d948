"""Metrics of images that may have any number of classes."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MultilabelAUROC, MultilabelAveragePrecision
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities import dim_zero_cat

from longvision.metrics.classification import area_under_roc


class LabelAveragePrecision(MultilabelAveragePrecision):
    """mAP: the mean average precision of the classes that occur; NaN where none does."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="macro", validate_args=False)

    def update(self, logits_BK: Tensor, target_BK: Tensor) -> None:
        super().update(logits_BK.float().sigmoid(), target_BK.long())  # itself it takes small logits for probabilities

    def compute(self) -> Tensor:  # type: ignore[override]
        share_NK, target_NK = _all(self)
        occurs_K = target_NK.any(0)
        if not occurs_K.any():
            return torch.tensor(torch.nan, device=self.device)
        return multilabel_average_precision(
            share_NK[:, occurs_K], target_NK[:, occurs_K], int(occurs_K.sum()), average="macro", validate_args=False
        )


class LabelAUROC(MultilabelAUROC):
    """The mean area under the ROC curve; NaN unless some image has each class, and some has not."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="macro", validate_args=False)

    def update(self, logits_BK: Tensor, target_BK: Tensor) -> None:
        super().update(logits_BK.float().sigmoid(), target_BK.long())

    def compute(self) -> Tensor:  # type: ignore[override]
        share_NK, target_NK = _all(self)
        columns = zip(share_NK.T, target_NK.bool().T, strict=True)
        return torch.stack([area_under_roc(share_N, positive_N) for share_N, positive_N in columns]).mean()


def _all(metric: Any) -> tuple[Tensor, Tensor]:
    """Probabilities and targets (N, K) of all updates."""
    states = (metric.preds, metric.target)
    share_NK, target_NK = (dim_zero_cat(s) if len(s) else torch.zeros(0, metric.num_labels) for s in states)
    return share_NK, target_NK.long()


def macro_f1(counts_K5: Tensor) -> Tensor:
    """Counts (K, 5) of true and false positives, true and false negatives, and images -> the mean F1 of the classes
    that occur; NaN where none does."""
    right_K, false_K, _, missed_K, images_K = counts_K5.unbind(1)
    occurs_K = images_K > 0
    return (2 * right_K / (2 * right_K + false_K + missed_K))[occurs_K].mean()
