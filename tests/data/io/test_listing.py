"""What is taken of a long list."""

import pytest

from longvision.data.io.listing import spread_evenly


@pytest.mark.parametrize("count, most, expected", [
    (10, 4, [0, 3, 6, 9]), (10, 3, [0, 4, 9]), (3, 3, [0, 1, 2]), (3, 10, [0, 1, 2]), (5, 1, [0]), (0, 4, []),
])  # fmt: skip
def test_spread_evenly(count, most, expected):
    assert spread_evenly(count, most) == expected
