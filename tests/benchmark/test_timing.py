"""How many samples a share of the budget buys, and whose turn it is."""

import pytest

from longvision.benchmark.case import Result, Round
from longvision.benchmark.timing import MOST_SAMPLES, WARM_UPS, stopwatch, take_turns, time_round


@pytest.mark.parametrize(
    "seconds, share, samples, first_call",
    [
        (0.001, 1, MOST_SAMPLES, False),
        (0.04, 1, MOST_SAMPLES, False),
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


def test_a_stopwatch_calls_and_reads_the_clock(clock):
    called = []
    assert stopwatch(lambda: called.append(1), "cpu", clock(0.25))() == 0.25
    assert called == [1]


def turns(case, models, budget, answer):
    """-> the models in the order in which they were measured, with the shares they got, and the news."""
    results, measured = [Result(case(model=name)) for name in models], []

    def measure(result, share):
        measured.append((result.case.model, share))
        return answer(result)

    news = list(take_turns(results, 3, budget, measure))
    return measured, news


def test_cases_take_turns(case):
    measured, news = turns(case, ["a", "b"], 9.0, lambda _: Round(seconds=[0.5], spent=3.0))
    assert measured == [("a", 3.0), ("b", 3.0)] * 3
    assert news[1] == "b  round 1 of 3: 500 ms"


def test_the_budget_is_of_all_rounds(case):
    assert turns(case, ["a"], 9.0, lambda _: Round(seconds=[1.0], spent=4.0))[0] == [("a", 3.0), ("a", 2.5), ("a", 1.0)]
    assert turns(case, ["a"], 9.0, lambda _: Round(seconds=[9.0], spent=9.0))[0] == [("a", 3.0)]


def test_a_case_that_failed_has_no_second_turn(case):
    measured, news = turns(case, ["a"], 9.0, lambda _: Round("out of memory"))
    assert measured == [("a", 3.0)] and news == ["a  round 1 of 3: out of memory"]
