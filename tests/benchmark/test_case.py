"""Rounds pooled into a result."""

import numpy as np
import pytest

from longvision.benchmark.case import Result, Round, milliseconds, quantile, ratio, sample_count, sentence, significant


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 37])
def test_quantiles_are_numpy_s(count):
    values = np.random.default_rng(count).exponential(size=count).tolist()
    for share in (0, 0.25, 0.5, 0.75, 1):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-12)


def test_milliseconds():
    assert milliseconds([0.003, 0.001, 0.002]) == {"ms_median": 2.0, "ms_q1": 1.5, "ms_q3": 2.5}


def test_rounds_are_pooled(case):
    result = Result(case())
    assert not result.is_final and result.median is None
    result.add(Round(seconds=[1.0, 5.0], spent=9.0, peak_bytes=7))
    result.add(Round(seconds=[3.0], first_call=True, spent=3.0))
    assert result.is_final and (result.seconds, result.spent, result.peak_bytes) == ([1.0, 5.0, 3.0], 12.0, 7)
    assert result.median == 3.0 and result.times()["samples"] == "3 (1 first call)"


def test_a_round_that_fails_fails_the_case(case):
    result = Result(case())
    result.add(Round(seconds=[1.0], peak_bytes=7))
    result.add(Round("out of memory"))
    assert result.status == "out of memory" and result.is_final
    assert result.seconds == [] and result.median is result.peak_bytes is result.times()["ms_median"] is None


def test_a_case_that_was_never_to_be_measured(case):
    result = Result(case(), "skipped: out of memory at 64")
    assert result.is_final and result.status == "skipped: out of memory at 64"


def test_ratios():
    assert ratio(1.0, 3.0) == 0.333
    assert ratio(None, 3.0) is ratio(1.0, None) is ratio(1.0, 0) is None
    assert ratio(0, 3.0) == 0


def test_an_error_fits_on_one_line():
    assert sentence(ValueError("two\n  lines")) == "two lines"
    assert sentence(ValueError()) == "ValueError"
    assert sentence(ValueError("x" * 200)) == "x" * 200
    assert sentence(ValueError("x" * 201)) == "x" * 199 + "…"


def test_numbers_as_people_read_them():
    assert significant(1234.56) == 1235
    assert significant(0.00123456) == 0.001235
    assert [sample_count(*counts) for counts in ((60, 0), (1, 1), (3, 1), (3, 3))] == [
        "60",
        "1 (first call)",
        "3 (1 first call)",
        "3 (3 first calls)",
    ]
