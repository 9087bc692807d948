"""A classifier's answer is drawn beside its image."""

import numpy as np
import pytest
from PIL import Image

from longvision.viz.bars import BARS_WIDTH, MOST_LIKELY, OTHERS, draw_classes

TOP = [("cat", 0.7), ("dog", 0.2), ("a class with a name that is much too long to be written beside its bar", 0.1)]


def bars(sheet, colour):
    """(first, last) column of each bar of a colour, from above."""
    rows = (np.asarray(sheet) == colour).all(-1)
    starts = np.flatnonzero(rows.any(1) & ~np.r_[False, rows.any(1)[:-1]])
    return [(np.flatnonzero(rows[row]).min(), np.flatnonzero(rows[row]).max()) for row in starts]


def test_names_and_probabilities_are_written_from_the_most_likely_down(written):
    draw_classes(Image.new("RGB", (60, 60)), "a.png", TOP)
    texts = [text["text"] for text in written]
    assert texts[:4] == ["cat", "70.0 %", "dog", "20.0 %"] and texts[4].endswith("…") and texts[-1] == "a.png"
    assert all(text["inside"] for text in written)
    names = [text["box"][3] for text in written[:-1:2]]
    assert names == sorted(names) and len(set(names)) == 3


def test_bars_are_as_long_as_probabilities():
    sheet = draw_classes(Image.new("RGB", (60, 60)), "a.png", TOP)
    (best,) = bars(sheet, MOST_LIKELY)
    others = bars(sheet, OTHERS)
    assert len(others) == 2 and best[0] == others[0][0]
    assert [last - first for first, last in (best, *others)] == [
        pytest.approx(share * (BARS_WIDTH - 32), abs=1) for _, share in TOP
    ]


def test_as_many_are_green_as_are_chosen():
    for chosen in (0, 2):
        sheet = draw_classes(Image.new("RGB", (60, 60)), "a.png", TOP, chosen)
        assert (len(bars(sheet, MOST_LIKELY)), len(bars(sheet, OTHERS))) == (chosen, 3 - chosen)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (300, 20), (20, 3000), (4000, 3000)])
def test_any_image_is_shown_whole_and_readable(size, written):
    colour = (200, 20, 200)
    sheet = draw_classes(Image.new("RGB", size, colour), "x" * 500, [(f"class {n}", 0.2) for n in range(5)])
    shown = (np.asarray(sheet) == colour).all(-1)
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert shown.sum() == height * width
    assert max(height, width) <= 384
    assert max(sheet.size) < 1500
    assert all(text["inside"] and text["size"] >= 12 for text in written)


def test_grey_images_are_shown_too():
    sheet = draw_classes(Image.new("L", (320, 320), 77), "a.png", TOP)
    assert ((np.asarray(sheet) == 77).all(-1)).sum() >= 320 * 320
