"""The rows of the surest mistakes, over batches and devices."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler

pytest.importorskip("torchmetrics")
from longvision.data.order import EvaluationOrder
from longvision.metrics.mistakes import WorstMistakes, batches_of


def update(metric, *images):
    """(row, loss, wrong) of a batch."""
    row, loss, wrong = zip(*images, strict=True)
    metric.update(torch.tensor(loss), torch.tensor(wrong), torch.tensor(row))


def test_the_highest_losses_of_wrong_answers():
    metric = WorstMistakes(3)
    update(metric, (0, 0.5, True), (1, 9.0, False), (2, 3.0, True))
    assert metric.compute() == [2, 0]
    update(metric, (3, 1.0, True), (4, 2.0, True))
    assert metric.compute() == [2, 4, 3]


def test_a_model_without_a_mistake():
    metric = WorstMistakes(3)
    assert metric.compute() == []
    update(metric, (0, 0.1, False))
    assert metric.compute() == []
    update(metric, (1, 0.0, True))  # a tie that was lost: a mistake without a loss
    assert metric.compute() == [1]


def test_of_several_devices_the_worst_of_all_each_once():
    states = []
    for images in ([(0, 0.5, True), (2, 3.0, True)], [(1, 1.0, True), (2, 3.0, True)]):
        metric = WorstMistakes(2)
        update(metric, *images)
        states.append((metric.loss, metric.row))
    both = WorstMistakes(2)
    both.loss, both.row = (torch.stack(parts) for parts in zip(*states, strict=True))  # as torchmetrics gathers them
    assert both.compute() == [2, 1]


def test_the_rows_of_a_loader_s_batches():
    dataset = SimpleNamespace(unreadable_N=torch.zeros(5))
    alone = SimpleNamespace(dataset=dataset, batch_sampler=BatchSampler(SequentialSampler(range(5)), 2, False))
    assert batches_of(alone) == [[0, 1], [2, 3], [4]]
    shared = SimpleNamespace(dataset=dataset, batch_sampler=None, sampler=EvaluationOrder(5, 2, 2, 1))
    assert batches_of(shared) == [[1, 3]]
    assert batches_of(None) == batches_of(SimpleNamespace(dataset=range(5), sampler=range(5))) == []
