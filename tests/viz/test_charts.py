"""The charts of a run say what they are drawn from."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
from longvision.viz import charts
from longvision.viz.charts import (
    draw_class_metrics,
    draw_confusion,
    draw_curves,
    draw_examples,
    draw_similarity,
    draw_tokens,
)

GREEN, RED = (42, 127, 79), (179, 38, 30)
GREY = Image.new("L", (8, 8), 128)


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share_near(pixels_HWC, colour, tolerance=40):
    return (np.abs(pixels_HWC - colour).max(-1) < tolerance).mean()


@pytest.fixture
def figures(monkeypatch):
    """Every figure of matplotlib's that is made."""
    made, figure = [], charts._figure
    monkeypatch.setattr(charts, "_figure", lambda *size: made.append(figure(*size)) or made[-1])
    return made


def lines(axes):
    """label -> values of each curve."""
    return {line.get_label(): line.get_ydata().tolist() for line in axes.lines}


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves(tmp_path, epochs, figures):
    history = [
        {"epoch": n + 1, "train/loss": 2 / (n + 1), "val/loss": 3 / (n + 1), "train/accuracy": 0.5, "val/accuracy": 0.4}
        for n in range(epochs)
    ]
    draw_curves(history, tmp_path / "curves.png", "title")
    loss, accuracy = figures[0].axes
    assert list(lines(loss).values()) == [[2 / (n + 1) for n in range(epochs)], [3 / (n + 1) for n in range(epochs)]]
    assert list(lines(accuracy).values()) == [[50.0] * epochs, [40.0] * epochs]
    assert list(lines(loss)) == ["training, augmented", "validation"]
    assert (loss.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy, %")
    drawn = pixels(tmp_path / "curves.png")
    assert drawn.shape[:2] == (480, 1200)
    assert share_near(drawn, GREEN) > 0.0002


def test_curves_with_gaps(tmp_path, figures):
    draw_curves([{"epoch": 1, "train/loss": 1.0}, {"epoch": 2}], tmp_path / "curves.png", "title")
    loss, accuracy = figures[0].axes
    assert list(lines(loss)) == ["training, augmented"] and not lines(accuracy)
    assert loss.lines[0].get_ydata()[0] == 1.0 and np.isnan(loss.lines[0].get_ydata()[1])


def test_bars_of_classes_are_the_best_above_and_name_those_that_are_not_there(tmp_path, figures):
    shares = {"cat": 0.5, "dog": float("nan"), "cow": 0.875}
    draw_class_metrics(shares, tmp_path / "c.png", "title", "IoU, %")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "cow"]
    assert [bar.get_width() for bar in axes.patches] == [50.0, 87.5]
    assert "dog" in axes.get_xlabel() and "IoU, %" in axes.get_xlabel()


def test_confusion_colours_the_share_of_the_row_and_writes_the_images(tmp_path, figures):
    draw_confusion(np.array([[2, 2], [0, 8]]), ["cat", "dog"], tmp_path / "c.png", "title")
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "2", (1, 0): "2", (1, 1): "8"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


@pytest.mark.parametrize("classes", [2, 21, 41, pytest.param(1000, marks=pytest.mark.slow)])
def test_confusion_of_many_classes(tmp_path, classes):
    draw_confusion(np.eye(classes, dtype=int), [f"class {n}" for n in range(classes)], tmp_path / "c.png", "title")
    assert 400 <= min(pixels(tmp_path / "c.png").shape[:2]) <= 2000


def test_confusion_of_a_class_without_images(tmp_path, figures):
    draw_confusion(np.array([[3, 0], [0, 0]]), ["a", "b"], tmp_path / "c.png", "title")
    assert figures[0].axes[0].images[0].get_array().tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_examples_are_green_or_red(tmp_path, figures):
    draw_examples([(GREY, "a (90 %)", "")] * 9, tmp_path / "right.png", "title")
    draw_examples([(GREY, "b (90 %)", "a")] * 9, tmp_path / "wrong.png", "title")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert share_near(right, GREEN) > 0.0005 > share_near(right, RED)
    assert share_near(wrong, RED) > 0.0005 > share_near(wrong, GREEN)
    assert [axes.get_title() for axes in figures[1].axes[:9]] == ["b (90 %)\nis a"] * 9
    assert right.shape[0] == pytest.approx(120 * 4.5, abs=2)  # nine are two rows


LONG = "validation accuracy 83.1 %, balanced accuracy 80.2 %, AUROC not measurable (the best epoch's; no test images)"


@pytest.mark.parametrize("drawing", ["confusion", "examples"])
def test_a_long_title_is_inside_the_drawing(tmp_path, figures, drawing):
    if drawing == "confusion":
        draw_confusion(np.eye(2, dtype=int), ["a", "b"], tmp_path / "c.png", LONG)
        title = figures[0].axes[0].title
    else:
        draw_examples([(GREY, "a (90 %)", "")] * 9, tmp_path / "c.png", f"{LONG}: some images and what the model says")
        title = figures[0]._suptitle
    box = title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figures[0].bbox.x1
    assert LONG.split()[0] in title.get_text()


def test_a_metric_against_tokens(tmp_path, figures):
    rows = [{"tokens": 16, "accuracy": 0.5, "loss": 2.0}, {"tokens": 256, "accuracy": 0.75, "loss": 1.0}]
    draw_tokens(rows, tmp_path / "tokens.png", "a model on a set", "accuracy", "accuracy")
    assert pixels(tmp_path / "tokens.png").size
    (axes,) = figures[0].axes
    (line,) = axes.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([16, 256], [50.0, 75.0])
    assert axes.get_xscale() == "log" and [tick.get_text() for tick in axes.get_xticklabels()] == ["16", "256"]


def test_similarity(tmp_path, figures):
    """The curves are the numbers; pairs that were not compared are grey."""
    layers_LL = np.array([[1.0, 0.5, np.nan], [0.5, 1.0, -0.2], [np.nan, -0.2, 1.0]])
    heads_L, similar_L = np.array([0.1, 0.2, 0.3]), np.array([np.nan, 0.0, 0.4])
    draw_similarity(layers_LL, heads_L, similar_L, 0.8, tmp_path / "similarity.png", "a model")
    heat, curves = figures[0].axes[:2]
    drawn = lines(curves)
    assert drawn["cosine with the layer before"] == [0.5, -0.2]
    assert drawn["cosine of its heads"] == heads_L.tolist()
    np.testing.assert_array_equal(drawn["share of columns with 0.8 or more"], similar_L)
    assert curves.lines[0].get_xdata().tolist() == [1, 2]
    (image,) = heat.images
    assert image.get_clim() == (-0.2, 1.0) and image.get_array().mask[0, 2]
    assert share_near(pixels(tmp_path / "similarity.png"), (102, 102, 102), 3) > 0.02
    draw_similarity(np.full((2, 2), 0.999), np.full(2, 0.998), np.ones(2), 0.9, tmp_path / "alike.png", "a model")
    low, high = figures[1].axes[1].get_ylim()
    assert low <= 0 and high > 1  # differences of a thousandth look like that
