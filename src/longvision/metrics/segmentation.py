"""What a segmentation is measured by: counts of pixels by true and predicted class, and the metrics made from them."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from longvision.types import IGNORE


class SegmentationMetrics(Metric):
    """Intersection over union, F1 and accuracy over all pixels of a split but those that are IGNORE, over all devices.

    Args:
        classes: how many, K.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts_KK: Tensor  # rows are true classes, columns predicted ones

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("counts_KK", torch.zeros(classes, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, pred_HW: Tensor, target_HW: Tensor) -> None:
        """Class numbers, both (H, W) or both (B, H, W)."""
        if pred_HW.shape != target_HW.shape:
            raise ValueError(
                f"predictions {tuple(pred_HW.shape)} and targets {tuple(target_HW.shape)} differ in shape: "
                "scale the logits to the target's size first"
            )
        counted = target_HW != IGNORE
        pred, target = pred_HW[counted].long(), target_HW[counted].long()
        for name, numbers in (("prediction", pred), ("target", target)):
            self._check(name, numbers)
        self.counts_KK += multiclass_confusion_matrix(pred, target, self.classes, validate_args=False)

    def compute(self) -> dict[str, Tensor]:
        """The metrics, 0 to 1: see `segmentation_metrics`."""
        return segmentation_metrics(self.counts_KK)

    def _check(self, name: str, numbers: Tensor) -> None:
        """A number outside the matrix would be counted as another class."""
        if numbers.numel() and not (numbers.min() >= 0 and numbers.max() < self.classes):
            raise ValueError(
                f"a {name} has class numbers {int(numbers.min())} to {int(numbers.max())}: "
                f"expected 0 to {self.classes - 1}, or {IGNORE} for pixels of a target that do not count"
            )


def segmentation_metrics(counts_KK: Tensor) -> dict[str, Tensor]:
    """Counts (K, K), rows true and columns predicted -> metrics from 0 to 1.

    "miou", "pixel_accuracy", "mean_accuracy": scalars. The means leave out classes that do not occur, as mmsegmentation
    does: neither in truth nor prediction for mIoU, not in truth for mean accuracy.
    "class_iou", "class_f1", "class_accuracy": (K,), NaN for the classes that are left out.
    "f1": scalar, of class 1, only where there are two classes.
    """
    hit_K, true_K, predicted_K = counts_KK.diagonal(), counts_KK.sum(1), counts_KK.sum(0)
    class_iou = hit_K / (true_K + predicted_K - hit_K)
    class_f1 = 2 * hit_K / (true_K + predicted_K)
    class_accuracy = hit_K / true_K
    # a class that never occurs in truth has no accuracy, even where it is predicted: 0 / 0 is NaN, as wanted
    metrics = {
        "miou": class_iou.nanmean(),
        "pixel_accuracy": hit_K.sum() / counts_KK.sum(),
        "mean_accuracy": class_accuracy.nanmean(),
        "class_iou": class_iou,
        "class_f1": class_f1,
        "class_accuracy": class_accuracy,
    }
    if len(counts_KK) == 2:
        metrics["f1"] = class_f1[1]
    return metrics
