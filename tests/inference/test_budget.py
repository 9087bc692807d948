"""The most tokens in a given time, by a clock that is told what to say."""

import pytest
import torch

from longvision.errors import UserError
from longvision.inference.budget import CALLS, milliseconds_of, most_tokens


@pytest.mark.parametrize(
    "budget, tokens",
    [(1, 1), (3.99, 1), (4, 4), (50, 49), (63.9, 49), (64, 64), (195, 169), (196, 196), (1e9, 196)],
)
def test_the_largest_square_that_fits(budget, tokens):
    """A token takes a millisecond. No larger square than 14 x 14 is tried, and none of over four times the budget."""
    asked = []
    assert most_tokens(budget, 14, lambda side: asked.append(side) or side**2) == (tokens, tokens)
    assert len(asked) <= 7 and len(set(asked)) == len(asked) and max(asked) ** 2 <= 4 * budget


def test_too_little_time():
    with pytest.raises(UserError, match=r"0\.5 ms.*one patch takes 1 ms"):
        most_tokens(0.5, 14, lambda side: side**2)


def test_the_median_behind_a_first_call():
    """That of 1, 2, 3, 4 and 100 ms; the first call takes a second."""
    seconds = [1, 0.1, 0.002, 0.004, 0.003, 0.001]
    now, calls = 0.0, []

    def model(image_1CHW):
        nonlocal now
        assert torch.is_inference_mode_enabled()
        now += seconds[len(calls)]
        calls.append(image_1CHW.shape)

    assert milliseconds_of(model, torch.zeros(1, 3, 8, 12), lambda: now) == pytest.approx(3)
    assert calls == [(1, 3, 8, 12)] * (1 + CALLS)
