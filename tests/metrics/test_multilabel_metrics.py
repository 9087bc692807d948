"""mAP, AUROC and F1 of several labels an image against scikit-learn, and where they cannot be measured."""

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("sklearn")
from sklearn import metrics as sklearn

from longvision.metrics.multilabel import LabelAUROC, LabelAveragePrecision, macro_f1
from longvision.tasks.label_kinds import ManyLabels


def measured(metric, logits_NK, target_NK):
    for rows in torch.arange(len(logits_NK)).split(7):
        metric.update(logits_NK[rows], target_NK[rows])
    return float(metric.compute())


@pytest.fixture
def answers():
    """Logits between 0 and 1, as probabilities are, and the targets of three classes."""
    target_NK = (torch.rand(40, 3) < torch.tensor([0.5, 0.3, 0.6])).float()
    return 0.7 * torch.rand(40, 3) + 0.3 * target_NK, target_NK


def test_against_scikit_learn(answers):
    logits_NK, target_NK = answers
    share_NK = logits_NK.double().sigmoid()
    expected = sklearn.average_precision_score(target_NK, share_NK, average="macro")
    assert measured(LabelAveragePrecision(3), *answers) == pytest.approx(expected, abs=1e-6)
    expected = sklearn.roc_auc_score(target_NK, share_NK, average="macro")
    assert measured(LabelAUROC(3), *answers) == pytest.approx(expected, abs=1e-6)


def test_f1(answers):
    logits_NK, target_NK = answers
    logits_NK = logits_NK - 0.5
    kind = ManyLabels()
    counts = kind.counts(3)
    kind.count(counts, logits_NK, target_NK)
    expected = sklearn.f1_score(target_NK, logits_NK.sigmoid() >= 0.5, average="macro")
    assert float(kind.of_counts(counts.compute())["f1"]) == pytest.approx(expected)
    images_K, said_K, right_K = kind.rates(counts.compute().numpy())
    assert images_K.tolist() == target_NK.sum(0).tolist() and said_K.tolist() == (logits_NK >= 0).sum(0).tolist()
    assert right_K.tolist() == ((logits_NK >= 0) & target_NK.bool()).sum(0).tolist()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_class_that_no_image_has_or_all_have(answers, value):
    logits_NK, target_NK = answers
    target_NK[:, 1] = value
    occurring = [0, 2] if value == 0 else [0, 1, 2]
    expected = sklearn.average_precision_score(target_NK[:, occurring], logits_NK[:, occurring], average="macro")
    assert measured(LabelAveragePrecision(3), logits_NK, target_NK) == pytest.approx(expected, abs=1e-6)
    assert torch.tensor(measured(LabelAUROC(3), logits_NK, target_NK)).isnan()


def test_without_any_label_nothing_is_measured():
    logits_NK, target_NK = torch.randn(4, 2), torch.zeros(4, 2)
    assert torch.tensor(measured(LabelAveragePrecision(2), logits_NK, target_NK)).isnan()
    assert macro_f1(torch.tensor([[0, 1, 3, 0, 0], [0, 0, 4, 0, 0]])).isnan()


def test_a_single_class():
    logits_NK, target_NK = torch.tensor([[1.0], [-1.0], [2.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    assert measured(LabelAveragePrecision(1), logits_NK, target_NK) == pytest.approx(0.5)
    assert measured(LabelAUROC(1), logits_NK, target_NK) == pytest.approx(0.5)
    kind = ManyLabels()
    counts = kind.counts(1)
    kind.count(counts, logits_NK, target_NK)
    assert float(kind.of_counts(counts.compute())["f1"]) == pytest.approx(2 / 3)
