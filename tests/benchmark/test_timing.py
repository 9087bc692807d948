"""How many samples a share of the budget buys."""

import pytest

from longvision.benchmark.timing import MOST_SAMPLES, WARM_UPS, time_round


@pytest.mark.parametrize(
    "seconds, share, samples, first_call",
    [
        (0.001, 1, MOST_SAMPLES, False),
        (0.04, 1, 22 - WARM_UPS + 1 if MOST_SAMPLES > 22 else MOST_SAMPLES, False),
        (0.2, 1, 4, False),  # one warm-up, since it took more than a tenth
        (0.9, 1, 1, False),
        (1.1, 1, 1, True),
    ],
)
def test_samples(seconds, share, samples, first_call):
    timing = time_round(lambda: seconds, seconds, share)
    assert (len(timing.seconds), timing.first_call) == (samples, first_call)
    warm_ups = WARM_UPS if 2 * seconds <= share / 10 else 1 + (seconds <= share / 10)
    calls = 1 if first_call else warm_ups + samples
    assert timing.spent == pytest.approx(calls * seconds)


def test_the_first_call_is_thrown_away():
    later = iter(range(1, 100))
    timing = time_round(lambda: next(later) / 1000, 0.5, 1.0)
    assert 0.5 not in timing.seconds
