"""The table, the picture, and where rows come from."""

import subprocess

import numpy as np
import pytest
from PIL import Image

from longvision.benchmark.picture import _end, draw_models
from longvision.benchmark.provenance import commit, device_name, provenance
from longvision.benchmark.table import _number, models_table


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
    assert [line == "" for line in lines] == [False, True, False, False, True, False, False, True, False, False]
    for name, cell in {"ms": "12.35", "images/s": "162", "GMACs": "1.5", "time ×": "1"}.items():
        end = header.index(name) + len(name)
        assert body[1][:end].endswith(f" {cell}"), (name, body[1])
    assert "deit+materialised" in body[2]
    assert "12346" in body[4]
    assert body[5].endswith("out of memory")
    assert body[7].endswith("at 992, it does not take 1000; samples: 3 (3 first calls)")
    assert not any(line.endswith(" ") for line in lines)


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


def test_the_picture_shows_milliseconds_an_image(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot

    def spy(self, sides, values, **options):
        drawn.append((list(sides), list(values), options.get("label"), options["marker"]))
        return plot(self, sides, values, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    draw_models(ROWS, tmp_path / "models.png")
    assert drawn[0] == ([224, 512, 1000], [12.345 / 2, 12345.6 / 2, 15000], "vim", "o")
    assert drawn[1][:3] == ([224], [9.9 / 2], "deit+materialised (× OOM at 512)")
    assert drawn[2] == ([224], [9.9 / 2], None, "x")
    assert drawn[3][1] == [12.345 * 3, 12345.6 * 3, 90000]  # memory, of the whole batch


def test_a_picture_of_nothing_but_failures(tmp_path):
    draw_models([row("vim", 224, "out of memory")], tmp_path / "models.png")
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
