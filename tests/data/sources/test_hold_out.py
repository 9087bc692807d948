import numpy as np
import pytest

from longvision.data.sources.base import hold_out


@pytest.mark.parametrize("counts", [[100, 100], [5, 5, 5], [2, 300], [1, 40], [11, 13, 17, 19]])
def test_each_class_gives_and_keeps(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    train, val = hold_out(labels, seed=0)
    assert sorted([*train, *val]) == list(range(len(labels)))
    for number, count in enumerate(counts):
        given = (labels[val] == number).sum()
        assert given <= max(1, count // 10 + 1)
        assert (given >= 1) == (count >= 2)
        assert (labels[train] == number).any()


def test_a_tenth():
    assert len(hold_out(np.arange(1000) % 7, seed=0)[1]) == 100


def test_the_seed_draws():
    labels = np.arange(1000) % 7
    draws = [hold_out(labels, seed)[1].tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_nothing_to_hold_out():
    with pytest.raises(ValueError, match="single image"):
        hold_out(np.array([0, 1, 2]), seed=0)
