"""What an image's label is to a classifier: one class of all, or any number of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MultilabelStatScores

from longvision.inference.results import THRESHOLD
from longvision.metrics.classification import MacroAUROC, balanced_accuracy
from longvision.metrics.multilabel import LabelAUROC, LabelAveragePrecision, macro_f1
from longvision.viz.sheets import short

MOST_AUROC = 1000  # classes: AUROC holds a probability of each for each image until the evaluation ends
MOST_SAID = 5  # labels of an image in a caption


@dataclass(frozen=True)
class Answer:
    """What a model says of an image, and what it is, in words."""

    says: str
    truth: str
    right: bool


class OneLabel:
    """Softmax and cross-entropy. Targets are class numbers (B,), or soft (B, K); counts a confusion (K, K)."""

    metric_names: ClassVar = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}

    def metrics(self, classes: int) -> dict[str, Metric]:
        made: dict[str, Metric] = {"accuracy": MulticlassAccuracy(classes, average="micro")}
        if classes > 5:
            made["top5"] = MulticlassAccuracy(classes, top_k=5, average="micro")
        return made | ({"auroc": MacroAUROC(classes)} if classes <= MOST_AUROC else {})

    def counts(self, classes: int) -> Metric:
        return MulticlassConfusionMatrix(classes)

    def count(self, counts: Metric, logits_BK: Tensor, target: Tensor) -> None:
        counts.update(logits_BK, target)

    def of_counts(self, counts_KK: Tensor) -> dict[str, Tensor]:
        return {"balanced_accuracy": balanced_accuracy(counts_KK)}

    def rates(self, counts_KK: Any) -> tuple[Any, Any, Any]:
        """Of each class: its images, those that are said to be of it, and those that rightly are."""
        return counts_KK.sum(1), counts_KK.sum(0), counts_KK.diagonal()

    def loss(self, logits_BK: Tensor, target: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(logits_BK, target, label_smoothing=smoothing, reduction=reduction)

    def wrong(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        """bool (B,)."""
        return logits_BK.argmax(1) != (target if target.ndim == 1 else target.argmax(1))

    def in_training(self, logits_BK: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What is measured of a training batch."""
        return {"accuracy": 1 - self.wrong(logits_BK, target).float().mean()}

    def answer(self, logits_K: Tensor, label: int, classes: Sequence[str]) -> Answer:
        share_K = logits_K.float().softmax(0)
        said = int(share_K.argmax())
        named = [f"{short(classes[number])} ({100 * float(share_K[number]):.0f} %)" for number in (said, label)]
        return Answer(named[0], named[1], said == label)


class ManyLabels:
    """A sigmoid and a binary cross-entropy for each class. Targets are 0 and 1, float (B, K); counts those of
    `MultilabelStatScores` (K, 5)."""

    metric_names: ClassVar = {"map": "mAP", "f1": "F1", "auroc": "AUROC"}

    def metrics(self, classes: int) -> dict[str, Metric]:
        made: dict[str, Metric] = {"map": LabelAveragePrecision(classes)}
        return made | ({"auroc": LabelAUROC(classes)} if classes <= MOST_AUROC else {})

    def counts(self, classes: int) -> Metric:
        return MultilabelStatScores(classes, THRESHOLD, average="none", validate_args=False)

    def count(self, counts: Metric, logits_BK: Tensor, target: Tensor) -> None:
        counts.update(logits_BK.float().sigmoid(), target.long())

    def of_counts(self, counts_K5: Tensor) -> dict[str, Tensor]:
        return {"f1": macro_f1(counts_K5.reshape(-1, 5))}  # torchmetrics leaves the axis of a single class out

    def rates(self, counts_K5: Any) -> tuple[Any, Any, Any]:
        right_K, false_K, _, _, images_K = counts_K5.reshape(-1, 5).T
        return images_K, right_K + false_K, right_K

    def loss(self, logits_BK: Tensor, target: Tensor, smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
        smooth = target * (1 - smoothing) + smoothing / 2
        loss_B = F.binary_cross_entropy_with_logits(logits_BK, smooth, reduction="none").mean(1)
        return loss_B.mean() if reduction == "mean" else loss_B

    def wrong(self, logits_BK: Tensor, target: Tensor) -> Tensor:
        return ((logits_BK.float().sigmoid() >= THRESHOLD) != target.bool()).any(1)

    def in_training(self, logits_BK: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {}

    def answer(self, logits_K: Tensor, label: Sequence[float], classes: Sequence[str]) -> Answer:
        share_K = logits_K.float().sigmoid()
        order = share_K.argsort(descending=True, stable=True).tolist()
        said = [number for number in order if share_K[number] >= THRESHOLD]
        true = [number for number in order if label[number]]
        named = [
            [f"{short(classes[number])} ({100 * float(share_K[number]):.0f} %)" for number in numbers]
            for numbers in (said, true)
        ]
        words = [", ".join(names[:MOST_SAID]) + (", …" if len(names) > MOST_SAID else "") for names in named]
        return Answer(words[0] or "nothing", words[1] or "nothing", set(said) == set(true))
