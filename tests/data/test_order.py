"""Which images an epoch shows, how often, and on which device."""

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")
from longvision.data import DigitsData, MostDigitsData
from longvision.data.augment import Augment
from longvision.data.label_config import LabelTableData
from longvision.data.order import EpochOrder, EvaluationOrder
from longvision.errors import UserError


def rows(order):
    return [draw.row for draw in order]


def test_an_epoch_of_repeated_augmentation_is_as_long_and_varies_an_image_otherwise_each_time():
    draws = list(EpochOrder(20, 3, repeats=3))
    assert len(draws) == len(set(draws)) == 20
    assert sorted(Counter(rows(draws)).values()) == [2, 3, 3, 3, 3, 3, 3]  # 7 of the images
    assert len({draw.seed for draw in draws}) == 20
    assert all(draws[place].row == draws[place - place % 3].row for place in range(20))  # the times follow each other


def test_without_repeats_it_is_the_order_that_it_was():
    """A run that an earlier version began goes on, and what recipes reached is what they reach."""
    random = np.random.default_rng([3, 1])
    order, seeds = random.permutation(6), random.integers(2**63, size=6)
    alone = EpochOrder(6, 3)
    alone.set_epoch(1)
    assert list(alone) == [(row, seeds[row], None, None) for row in order]


@pytest.mark.parametrize(
    "options", [{"repeats": 3}, {"labels_N": np.array([0] * 20 + [1, 1])}], ids=["repeats", "balance"]
)
def test_devices_share_it_without_overlap_and_from_any_place(options):
    def order(devices=1, rank=0, begin=0):
        one = EpochOrder(22, 5, devices, rank, **options)
        one.set_epoch(2, begin)
        return list(one)

    whole = order()
    assert len(set(whole)) == 22
    for begin in (0, 8):
        parts = [order(2, rank, begin) for rank in (0, 1)]
        assert [draw for both in zip(*parts) for draw in both] == whole[begin:]


@pytest.mark.parametrize(
    "count, batch, devices, accumulated, steps",
    [
        (1_281_167, 128, 1, 8, 8 * 1251),  # ImageNet at a total batch of 1024: 10009 batches, 1 left over
        (1_281_167, 128, 8, 1, 1251),
        (1_281_167, 64, 2, 8, 8 * 1251),
        (22, 4, 1, 2, 4),
        (22, 4, 1, 5, 5),
        (22, 4, 1, 8, 5),  # not enough for one whole step: a smaller one
        (3, 4, 1, 2, 1),
    ],
)
def test_every_step_of_the_optimizer_has_the_total_batch(count, batch, devices, accumulated, steps):
    order = EpochOrder(count, 0, devices, batch=batch, accumulated=accumulated)
    assert order.steps() == steps and len(order) == min(steps * batch, count)
    begin = order.after(accumulated)
    assert order.steps(begin) == max(0, steps - accumulated)
    if count < 100:
        assert len(list(order)) == len(order)
        order.set_epoch(0, begin)
        assert len(list(order)) == len(order) - min(accumulated * batch, len(order))


def test_the_total_batch_is_of_the_options():
    data = DigitsData(size=8, batch_size=64, total_batch=256).build()
    assert data.count // 64 == 20 and data.batches() == 20
    assert DigitsData(size=8, batch_size=64, total_batch=512).build().batches() == 16


def test_balance_shows_each_class_as_often():
    labels_N = np.array([0] * 90 + [2] * 9 + [5])
    order = EpochOrder(100, 0, labels_N=labels_N)
    seen = Counter(labels_N[rows(order)].tolist())
    assert sorted(seen.values()) == [33, 33, 34]
    times = Counter(rows(order))
    assert {times[row] for row in range(90)} == {0, 1}
    assert {times[row] for row in range(90, 99)} <= {3, 4}  # of a small class each as often as the others
    assert len(set(order)) == 100
    first = list(order)
    order.set_epoch(1)
    assert list(order) != first


def test_balance_takes_the_classes_of_the_source():
    data = DigitsData(size=8, batch_size=1, balance=True).build()
    labels = [data.images("train")[row][1] for row in rows(data.order())]
    assert set(Counter(labels).values()) <= {129, 130}  # of 1,293
    repeated = DigitsData(size=8, batch_size=1, balance=True, augment=Augment(repeats=3)).build()
    assert set(Counter(rows(repeated.order())).values()) <= {1, 2, 3, 4}


def test_balance_without_a_class_an_image_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(UserError, match=r"data\.balance true .*are not of one class"):
        MostDigitsData(size=32, pictures=4, balance=True).build().setup("fit")
    for number in range(4):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "labels.csv").write_text("image,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n")
    for multilabel, words in ((False, nullcontext()), (True, pytest.raises(UserError, match="any number of classes"))):
        with words:
            LabelTableData(str(tmp_path), size=8, balance=True, multilabel=multilabel).build().setup("fit")


@pytest.mark.parametrize(
    "count, batch, devices", [(9, 4, 2), (8, 4, 2), (5, 1, 2), (10, 3, 4), (144, 64, 1), (7, 1, 7)]
)
def test_several_devices_evaluate_each_image_once_in_as_many_batches(count, batch, devices):
    shares = [list(EvaluationOrder(count, batch, devices, rank)) for rank in range(devices)]
    assert {len(share) for share in shares} == {len(EvaluationOrder(count, batch, devices))}
    assert sorted(row for share in shares for rows in share for row in rows) == list(range(count))
    assert max(len(rows) for share in shares for rows in share) <= batch + 1


def test_fewer_images_than_devices():
    assert [list(EvaluationOrder(2, 4, 3, rank)) for rank in range(3)] == [[[0]], [[1]], [[0]]]


def test_repeats_below_one_are_refused():
    with pytest.raises(UserError, match="repeats 0"):
        Augment(repeats=0)
