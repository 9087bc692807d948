"""The table, the picture, and where rows come from."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from longvision.benchmark.picture import COLOURS, MARKERS, _end, draw_models
from longvision.benchmark.provenance import commit, device_name, provenance
from longvision.benchmark.table import _number, models_table, ops_table


def row(model, asked, status="ok", ms=10.0, **changes):
    measured = status == "ok"
    return {
        "model": model,
        "variant": "",
        "attention": "",
        "mode": "infer",
        "asked": asked,
        "size": asked,
        "batch": 2,
        "dtype": "float32",
        "device": "a processor",
        "threads": 2 if measured else None,
        "ms_median": ms if measured else None,
        "ms_q1": ms * 0.9 if measured else None,
        "ms_q3": ms * 1.1 if measured else None,
        "samples": "60",
        "images_per_s": 2e3 / ms if measured else None,
        "peak_mb": ms * 3 if measured else None,
        "gmacs": 1.5,
        "time_ratio": 1.0 if measured else None,
        "memory_ratio": None,
        "baseline": "vim",
        "status": status,
        **changes,
    }


ROWS = [
    row("vim", 224, ms=12.345),
    row("deit", 224, ms=9.9, variant="materialised"),
    row("vim", 512, ms=12345.6),
    row("deit", 512, "out of memory", variant="materialised"),
    row("vim", 1000, ms=30000, size=992, samples="3 (3 first calls)"),
    row("deit", 1000, "skipped: out of memory at 512", variant="materialised"),
]


def test_columns_are_aligned_and_sizes_are_groups():
    lines = models_table(ROWS).splitlines()
    header, *body = lines
    assert [number for number, line in enumerate(lines) if not line] == [1, 4, 7, 10]
    for name, cell in {"ms": "12.35", "images/s": "162", "GMACs": "1.5", "time ×": "1"}.items():
        end = header.index(name) + len(name)
        assert body[1][:end].endswith(f" {cell}"), (name, body[1])
    assert "deit+materialised" in body[2]
    assert "12346" in body[4]
    assert body[5].endswith("out of memory")
    assert body[7].startswith("992 ")
    assert body[7].endswith("it does not take 1000, which was asked for; samples: 3 (3 first calls)")
    assert body[8].startswith("1000 ")
    assert not any(line.endswith(" ") for line in lines)


def test_a_ratio_of_a_first_call_is_marked():
    cold = {"samples": "1 (first call)", "memory_ratio": 0.5}
    warm = models_table([row("deit", 224, time_ratio=0.107), row("vim", 224)])
    assert " 0.107 " in warm and "~" not in warm
    for rows in (
        [row("deit", 224, time_ratio=0.107, **cold), row("vim", 224)],
        [row("deit", 224, time_ratio=0.107, memory_ratio=0.5), row("vim", 224, **cold)],  # the baseline's
    ):
        text = models_table([*rows, row("vit", 224, "failed"), row("deit", 512, time_ratio=0.2), row("vim", 512)])
        assert text.splitlines()[-1] == "~: rests on a first call, which is not warm; raise --budget for more samples"
        assert " ~0.107 " in text and " ~0.5" in text
        assert " 0.2 " in text and "~-" not in text


def test_a_ratio_of_a_first_call_is_marked_among_operators_too():
    def op_row(backend, samples, products_ratio, reference_ratio):
        times = {"ms_median": 1.0, "ms_q1": 1.0, "ms_q3": 1.0}
        ratios = {"products_ratio": products_ratio, "reference_ratio": reference_ratio}
        return {"tokens": 197, "backend": backend, "samples": samples, "status": "ok", **times, **ratios}

    products, cpu = op_row("matrix products", "60", 1.0, 0.1), op_row("cpu", "60", 0.3, 0.04)
    assert "~" not in ops_table([products, cpu, op_row("reference", "60", 9.0, 1.0)])
    lines = ops_table([products, cpu, op_row("reference", "3 (3 first calls)", 9.0, 1.0)]).splitlines()
    assert lines[1].split()[-3:] == ["1", "~0.1", "60"]
    assert lines[2].split()[-3:] == ["0.3", "~0.04", "60"]
    assert lines[3].split()[-6:-4] == ["~9", "~1"]
    assert lines[4:] == ["", "~: rests on a first call, which is not warm; raise --budget for more samples"]


def test_the_table_says_where_the_baseline_has_no_time():
    alone = row("deit", 512, time_ratio=None)
    text = models_table([row("deit", 224), row("vim", 224), alone, row("vim", 512, "out of memory")])
    assert text.splitlines()[-1] == "no × at 512: the baseline vim has no time there; name another with --baseline"
    assert "--baseline" not in models_table([row("vim", 224), row("deit", 224, "out of memory")])
    assert "--baseline" not in models_table([row("vim", 224, "out of memory")])  # no time at all is another matter


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0.001234, "0.001234"), (0.0000012, "0.000001"), (12.3456, "12.35"), (12345678.9, "12345679")],
)
def test_numbers_have_no_exponent(value, text):
    assert _number(value) == text


def test_the_picture_is_drawn(tmp_path):
    draw_models(ROWS, tmp_path / "models.png")
    with Image.open(tmp_path / "models.png") as image:
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_the_picture_knows_where_a_line_ends():
    deit = [row for row in ROWS if row["model"] == "deit"]
    assert _end(deit) == "OOM at 512"
    assert _end([row for row in ROWS if row["model"] == "vim"]) == ""
    assert _end([row("x", 64, "over budget: no call in 1 s")]) == "over budget at 64"


def titles(monkeypatch, rows, path):
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **_: seen.append(text))
    draw_models(rows, path)
    return seen


def test_table_and_picture_say_which_head(tmp_path, monkeypatch):
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


@pytest.fixture
def drawn(monkeypatch):
    """(sides, values, label, marker, colour) of every line of a picture, as it is drawn."""
    from matplotlib.axes import Axes

    lines = []
    plot = Axes.plot

    def spy(self, sides, values, **options):
        lines.append((list(sides), list(values), options.get("label"), options["marker"], options["color"]))
        return plot(self, sides, values, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    return lines


def test_the_picture_shows_milliseconds_an_image(tmp_path, drawn):
    draw_models(ROWS, tmp_path / "models.png")
    drawn = [line[:4] for line in drawn]
    assert drawn[0] == ([224, 512, 1000], [12.345 / 2, 12345.6 / 2, 15000], "vim", "o")
    assert drawn[1][:3] == ([224], [9.9 / 2], "deit+materialised (× OOM at 512)")
    assert drawn[2] == ([224], [9.9 / 2], None, "x")
    assert drawn[3][1] == [12.345 * 3, 12345.6 * 3, 90000]  # memory, of the whole batch


def test_the_picture_shows_quartiles(tmp_path, monkeypatch):
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


def test_a_model_keeps_its_colour_in_a_picture_of_a_few(tmp_path, drawn):
    names = ["vim", "vit", "deit+materialised", "deit"]
    draw_models([row("deit", 224), row("vim", 224)], tmp_path / "models.png", names)
    assert {label: colour for _, _, label, _, colour in drawn} == {"vim": COLOURS[0], "deit": COLOURS[3]}


def test_memory_that_no_one_measured(tmp_path):
    draw_models([row("vim", 224, peak_mb=None)], tmp_path / "models.png")
    assert (tmp_path / "models.png").stat().st_size


def test_where_rows_come_from():
    assert set(provenance()) == {"longvision", "torch", "timm", "python", "commit", "date"}
    assert device_name("cpu").strip()


def test_the_commit_of_a_checkout(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert commit(package) == ""  # no checkout
    git("init")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-m", "zero")
    assert commit(package) == ""  # a checkout of something else: the package is not tracked in it
    git("add", ".")
    git("commit", "-m", "one")
    name = git("rev-parse", "--short", "HEAD")
    assert commit(package) == name
    (package / "new.py").write_text("")
    assert commit(package) == f"{name}+dirty"


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) == ""
