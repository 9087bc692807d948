"""Rounds pooled into a result."""

import numpy as np
import pytest

from longvision.benchmark.case import Result, Round, milliseconds, quantile, sample_count, sentence, significant


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 37])
def test_quantiles_are_numpy_s(count):
    values = np.random.default_rng(count).exponential(size=count).tolist()
    for share in (0, 0.25, 0.5, 0.75, 1):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)


def test_milliseconds():
    assert milliseconds([0.003, 0.001, 0.002]) == {"ms_median": 2.0, "ms_q1": 1.5, "ms_q3": 2.5}


def test_rounds_are_pooled(case):
    result = Result(case())
    result.add(Round(seconds=[1.0, 5.0], spent=9.0, peak_bytes=7, attention="sdpa", threads=2))
    result.add(Round(seconds=[3.0], first_call=True, spent=3.0, threads=2))
    assert result.measured and not result.ended_the_model
    assert (result.seconds, result.first_calls, result.spent) == ([1.0, 5.0, 3.0], 1, 12.0)
    assert (result.peak_bytes, result.attention, result.threads) == (7, "sdpa", 2)


@pytest.mark.parametrize(
    "status, ends",
    [
        ("out of memory", True),
        ("over budget: no call in 300 s", True),
        ("killed (signal 9): probably out of memory", True),
        ("refused: image 30x30", False),
        ("failed: x", False),
    ],
)
def test_a_round_that_fails_fails_the_case(case, status, ends):
    result = Result(case())
    result.add(Round(seconds=[1.0]))
    result.add(Round(status))
    assert not result.measured
    assert result.ended_the_model == ends


def test_an_error_fits_on_one_line():
    assert sentence(ValueError("two\n  lines")) == "two lines"
    assert sentence(ValueError()) == "ValueError"
    assert sentence(ValueError("x" * 200)) == "x" * 200
    assert sentence(ValueError("x" * 201)) == "x" * 199 + "…"


def test_numbers_as_people_read_them():
    assert significant(1234.56) == 1235
    assert significant(0.00123456) == 0.001235
    assert sample_count(60, 0) == "60"
    assert sample_count(1, 1) == "1 (first call)"
    assert sample_count(3, 1) == "3 (1 first call)"
    assert sample_count(3, 3) == "3 (3 first calls)"
