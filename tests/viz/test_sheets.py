"""Many panels go on one sheet."""

import numpy as np
import pytest
from PIL import Image

from longvision.data.io.colours import spread_colours
from longvision.viz.sheets import contact_sheet


@pytest.mark.parametrize("count", [1, 2, 7, 20, 150])
def test_a_sheet_holds_every_panel_and_stays_small(count, written):
    shown = [Image.new("RGB", (1500, 400 + 10 * (n % 3)), spread_colours(8)[n % 8]) for n in range(count)]
    sheet = contact_sheet(shown, "twenty samples of " + "a long title " * 30)
    assert max(sheet.size) <= 4100
    assert all(text["inside"] for text in written)
    shrunk = sheet.reduce(4)
    assert {colour for _, colour in shrunk.getcolors(shrunk.width * shrunk.height)} >= set(spread_colours(8)[:count])
    if count > 1:
        assert 0.4 < sheet.width / sheet.height < 2.5


def test_a_sheet_is_read_line_by_line():
    colours = spread_colours(6)
    sheet = np.asarray(contact_sheet([Image.new("RGB", (200, 150), colour) for colour in colours], "title"))
    first = [np.argwhere((sheet == colour).all(-1)).min(0).tolist() for colour in colours]
    assert first == sorted(first) and len({left for _, left in first}) > 1


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected at least one"):
        contact_sheet([], "title")
