"""The chart of time and memory against image size."""

import numpy as np
import pytest
from PIL import Image

from longvision.benchmark.chart import COLOURS, MARKERS, _end, draw_models
from longvision.benchmark.table import models_table
from support.benchmark_rows import ROWS, row


@pytest.mark.slow
def test_the_chart_is_drawn(tmp_path):
    draw_models(ROWS, tmp_path / "models.png")
    with Image.open(tmp_path / "models.png") as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_the_chart_knows_where_a_line_ends():
    deit = [row for row in ROWS if row["model"] == "deit"]
    assert _end(deit) == "OOM at 512"
    assert _end([row for row in ROWS if row["model"] == "vim"]) == ""
    assert _end([row("x", 64, "over budget: no call in 1 s")]) == "over budget at 64"


@pytest.fixture
def drawn(monkeypatch):
    """(sides, values, label, marker, colour) of every line of a chart, as it is drawn."""
    from matplotlib.axes import Axes

    lines = []
    plot = Axes.plot

    def spy(self, sides, values, **options):
        lines.append((list(sides), list(values), options.get("label"), options["marker"], options["color"]))
        return plot(self, sides, values, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    return lines


def test_the_chart_shows_milliseconds_an_image(tmp_path, drawn):
    draw_models(ROWS, tmp_path / "models.png")
    drawn = [line[:4] for line in drawn]
    assert drawn[0] == ([224, 512, 1000], [12.345 / 2, 12345.6 / 2, 15000], "vim", "o")
    assert drawn[1][:3] == ([224], [9.9 / 2], "deit+materialised (× OOM at 512)")
    assert drawn[2] == ([224], [9.9 / 2], None, "x")
    assert drawn[3][1] == [12.345 * 3, 12345.6 * 3, 90000]  # memory, of the whole batch


def test_the_chart_shows_quartiles(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    bars = []
    monkeypatch.setattr(Axes, "vlines", lambda self, *ends, **_: bars.append(ends))
    draw_models([row("vim", 224, ms=10.0, ms_q3=11.0), row("vim", 512, "out of memory")], tmp_path / "models.png")
    assert bars == [([224], [4.5], [5.5])]  # of an image, in the panel of times only


def test_the_legend_promises_no_cross_where_none_is_drawn(tmp_path, drawn):
    draw_models([row("vim", 224), row("deit", 224, "over budget: no call in 1 s")], tmp_path / "models.png")
    assert {label for _, _, label, *_ in drawn} == {"vim", "deit (over budget at 224)"}
    assert "x" not in {marker for *_, marker, _ in drawn}


def test_forty_models_look_different(tmp_path, drawn):
    draw_models([row(f"model {number}", 224) for number in range(40)], tmp_path / "models.png")
    assert len({(marker, colour) for *_, marker, colour in drawn}) == 40
    assert len(COLOURS) * len(MARKERS) > 40


def test_a_model_keeps_its_colour_in_a_chart_of_a_few(tmp_path, drawn):
    names = ["vim", "vit", "deit+materialised", "deit"]
    draw_models([row("deit", 224), row("vim", 224)], tmp_path / "models.png", names)
    assert {label: colour for _, _, label, _, colour in drawn} == {"vim": COLOURS[0], "deit": COLOURS[3]}


def test_memory_that_no_one_measured(tmp_path):
    draw_models([row("vim", 224, peak_mb=None)], tmp_path / "models.png")
    assert (tmp_path / "models.png").stat().st_size


def titles(monkeypatch, rows, path):
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **_: seen.append(text))
    draw_models(rows, path)
    return seen


def test_table_and_chart_say_which_head(tmp_path, monkeypatch):
    rows = [row("vim", 224, head="fpn", gmacs=None), row("deit", 224, head="fpn", gmacs=None)]
    assert models_table(rows).splitlines()[0].startswith("size  model with fpn  ")
    assert titles(monkeypatch, rows, tmp_path / "a.png") == [
        "inference with fpn, batch 2, float32, a processor, 2 threads"
    ]


@pytest.mark.parametrize("head", [{}, {"head": ""}])
def test_rows_without_a_head_and_those_older_than_the_column_are_bare_models(tmp_path, monkeypatch, head):
    rows = [row("vim", 224, **head)]
    assert models_table(rows).splitlines()[0].startswith("size  model  ")
    assert titles(monkeypatch, rows, tmp_path / "a.png") == ["inference, batch 2, float32, a processor, 2 threads"]
