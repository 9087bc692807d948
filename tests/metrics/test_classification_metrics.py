"""AUROC and balanced accuracy against scikit-learn, and where they cannot be measured."""

import math

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("sklearn")
from sklearn import metrics as sklearn

from longvision.metrics.classification import MacroAUROC, area_under_roc, balanced_accuracy


def auroc(logits_NK, label_N, classes):
    metric = MacroAUROC(classes)
    for rows in torch.arange(len(label_N)).split(7):
        metric.update(logits_NK[rows], label_N[rows])
    return float(metric.compute())


def test_equal_probabilities_count_half():
    """Of four pairs one is right, two are ties and one is wrong."""
    share_N, positive_N = torch.tensor([0.5, 0.5, 0.5, 0.2, 0.9]), torch.tensor([True, False, False, False, False])
    assert float(area_under_roc(share_N, positive_N)) == pytest.approx((1 + 2 / 2) / 4)
    coarse_N, label_N = torch.randint(0, 4, (60,)) / 4, torch.randint(0, 2, (60,))
    expected = sklearn.roc_auc_score(label_N, coarse_N)
    assert float(area_under_roc(coarse_N, label_N.bool())) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])  # small logits are between 0 and 1, as probabilities are
def test_auroc(scale):
    label_N = torch.randint(0, 3, (50,))
    logits_NK = scale * (torch.rand(50, 3) + 0.5 * torch.eye(3)[label_N])
    expected = sklearn.roc_auc_score(label_N, logits_NK.softmax(1).double(), multi_class="ovr", average="macro")
    assert auroc(logits_NK, label_N, 3) == pytest.approx(expected, abs=1e-5)


def test_auroc_of_two_classes_is_the_usual_one():
    label_N = torch.tensor([0, 1, 1, 0, 1])
    logits_NK = torch.tensor([[2.0, 0], [0, 1], [1, 0], [0.5, 0.4], [0, 3]])
    expected = sklearn.roc_auc_score(label_N, logits_NK.softmax(1)[:, 1])
    assert auroc(logits_NK, label_N, 2) == pytest.approx(expected)


@pytest.mark.parametrize("labels, classes", [([0, 1, 1], 3), ([1, 1], 2), ([0, 0], 1), ([], 2)])
def test_without_one_of_the_classes_there_is_no_auroc(labels, classes):
    label_N = torch.tensor(labels, dtype=torch.long)
    assert math.isnan(auroc(torch.randn(len(labels), classes), label_N, classes))


def test_balanced_accuracy_is_over_the_classes_that_occur():
    """Class 2 is predicted and never true: it has no recall."""
    true, found = [0, 0, 0, 1, 3, 3], [0, 0, 2, 1, 2, 3]
    counts_KK = torch.tensor(sklearn.confusion_matrix(true, found, labels=range(4)))
    with pytest.warns(UserWarning):
        assert float(balanced_accuracy(counts_KK)) == pytest.approx(sklearn.balanced_accuracy_score(true, found))
    assert balanced_accuracy(torch.zeros(3, 3)).isnan()
