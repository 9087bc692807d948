"""Lists and ranges of image sides."""

from itertools import pairwise

import pytest

from longvision.benchmark.sizes import parse_sizes
from longvision.errors import UserError


@pytest.mark.parametrize(
    "text, sides",
    [
        ("224:2048", [224, 384, 512, 768, 1024, 1248, 1536, 2048]),
        ("224:1024", [224, 384, 512, 768, 1024]),  # as the help says
        ("224:1248", [224, 384, 512, 768, 1024, 1248]),
        ("32:64", [32, 48, 64]),
        ("224:240", [224, 240]),
        ("16:16", [16]),
        ("512", [512]),
        ("512,224, 225,512", [224, 225, 512]),
    ],
)
def test_sides(text, sides):
    assert parse_sizes(text) == sides


def test_a_range_covers_its_ends_in_steps_that_are_neither_near_nor_far():
    for first in range(16, 3000, 208):
        for last in range(first, 8000, 496):
            if last % 16:
                continue
            sides = parse_sizes(f"{first}:{last}")
            assert (sides[0], sides[-1]) == (first, last)
            assert all(side % 16 == 0 for side in sides)
            steps = [b / a for a, b in pairwise(sides)]
            assert len(steps) < 2 or min(steps) >= 1.2
            assert first < 32 or all(step < 1.85 for step in steps)


def test_what_are_no_sides():
    for text in ("", ",", "224,", "0", "224,0", "-224", "224.5", "x", "224:", ":", "1:2:3", "224x224", "²"):
        with pytest.raises(UserError, match=f"^{text!r}"):
            parse_sizes(text)


def test_a_range_says_what_is_wrong_with_it():
    with pytest.raises(UserError, match="224:512"):
        parse_sizes("512:224")
    with pytest.raises(UserError, match="230 is not: take 224"):
        parse_sizes("230:512")
