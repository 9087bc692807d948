"""Names of classes and files as file systems allow them, in every drawing, table and file."""

import json
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from longvision.data.sources.folder import FolderSource
from longvision.files import written_beside
from longvision.inference.outputs import MaskFiles
from longvision.inference.results import ClassResult, MaskResult, write_new
from longvision.text import as_text, one_line, printable
from longvision.viz.charts import draw_class_metrics, draw_confusion, draw_curves, draw_examples
from longvision.viz.overlays import titled
from support.trees import plant

NAMES = {
    "dollars (nine-or-null#14)": "$",
    "two dollars": "$$$",
    "formula": "a_$_b$c^{2",
    "backslash": "\\frac{",
    "tab and line end": "tab\tline\nend",
    "escape": "\x1b[31mred",
    "comma and quotes": "a,b;\"c'",
    "hash, percent, tag": "#1%20|<b>`{x}",
    "dash": "-rf",
    "emoji": "🐱👩‍👩‍👧",
    "right to left": "قطة ‮abc",
    "CJK": "猫の写真",
    "apart": "cafe\u0301",
    "no UTF-8": "caf\udce9",
    "long": "x" * 250,
    "blank": " a  b ",
    "markdown": "[a](b)*c*",
}
GREY = Image.new("L", (8, 8), 128)


@pytest.fixture(params=NAMES.values(), ids=NAMES)
def name(request):
    return request.param


@pytest.mark.slow
def test_charts(tmp_path):
    classes = list(map(as_text, NAMES.values()))
    title = " on ".join(NAMES.values())
    shares = dict.fromkeys(classes, 0.5) | {classes[0]: float("nan")}
    with warnings.catch_warnings(action="error"):
        draw_confusion(np.eye(len(classes), dtype=int), classes, tmp_path / "confusion.png", title)
        draw_class_metrics(shares, tmp_path / "classes.png", title, "IoU, %")
        draw_examples([(GREY, name, "other") for name in classes[:4]], tmp_path / "examples.png", title)
        draw_curves([{"epoch": 1, "train/loss": 1.0}], tmp_path / "curves.png", title)
    assert len(list(tmp_path.iterdir())) == 4


def test_formulas_are_drawn_as_they_are(tmp_path, monkeypatch):
    from matplotlib import mathtext

    monkeypatch.setattr(mathtext.MathTextParser, "parse", lambda *_, **__: pytest.fail("read as a formula"))
    draw_confusion(np.eye(2, dtype=int), ["a_$_b$c", "$x$"], tmp_path / "confusion.png", "$x$")


def test_drawings(name):
    assert titled(GREY, name).size[0] < 2000
    classes = [as_text(name), "other"]
    ClassResult(f"folder/{name}.png", GREY, classes, np.array([0.6, 0.4], np.float32)).image()
    mask = np.zeros((8, 8), np.uint8)
    result = MaskResult(name, GREY, classes, [(0, 0, 0), (255, 0, 0)], mask, {0: 1.0})
    assert max(result.image().size) < 4000


def test_result_files(tmp_path, name):
    for _ in range(2):
        drawing, values = write_new(tmp_path, name, {"-mask.png": GREY, ".json": {"file": name}})
        assert json.loads(values.read_text("utf-8")) == {"file": name} and drawing.is_file()
    assert len(os.listdir(tmp_path)) == 4


def test_a_long_name_is_cut_and_told(tmp_path):
    output = MaskFiles(["a", "b"], tmp_path)
    mask = np.zeros((8, 8), np.uint8)
    for ending in ("jpg", "png"):
        output.add(MaskResult(f"{'x' * 251}.{ending}", GREY, ["a", "b"], [(0, 0, 0), (9, 9, 9)], mask, {0: 1.0}))
    assert len(output.notes) == 2 and len(os.listdir(tmp_path)) == 4


def test_files_beside(tmp_path, name):
    with written_beside(tmp_path / f"{name[:120]}.csv") as beside:
        beside.write_text(as_text(name), encoding="utf-8")
    assert (tmp_path / f"{name[:120]}.csv").read_text("utf-8") == as_text(name)


def test_printed(name):
    for text in (printable(name), one_line(name)):
        text.encode("utf-8")
        assert not set(text) & {"\n", "\t", "\x1b", "\u202e"}
    assert printable("a\nb\udcff\u202e") == "a\\nb\\xff\\u202e" and printable("🐱👩‍👩‍👧") == "🐱👩‍👩‍👧"


def test_a_source_keeps_the_name(tmp_path, name):
    assert as_text(name) in FolderSource(plant(tmp_path, f"{name}/3", "other/3")).classes


def test_a_card_shows_names_as_they_are():
    pytest.importorskip("lightning")
    from longvision.engine.card import _in_markdown

    assert [_in_markdown(name) for name in ("$x$", "a_b", "<b>", "two\nlines")] == [
        r"\$x\$",
        "a_b",
        r"\<b\>",
        "two\\\\nlines",
    ]
