"""The pictures of a run are drawn, have the size of what is in them, and are not blank."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("lightning")
from longvision.viz import charts as pictures
from longvision.viz.charts import draw_confusion, draw_curves, draw_examples, draw_predictions

GREEN, RED = (42, 127, 79), (179, 38, 30)
GREY = Image.new("L", (8, 8), 128)


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share_near(pixels_HWC, colour, tolerance=40):
    return (np.abs(pixels_HWC - colour).max(-1) < tolerance).mean()


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves(tmp_path, epochs):
    history = [
        {"epoch": n + 1, "train/loss": 2 / (n + 1), "val/loss": 3 / (n + 1), "train/accuracy": 0.5, "val/accuracy": 0.4}
        for n in range(epochs)
    ]
    draw_curves(history, tmp_path / "curves.png", "title")
    drawn = pixels(tmp_path / "curves.png")
    assert drawn.shape[:2] == (480, 1200)
    assert share_near(drawn, GREEN) > 0.0002


def test_curves_with_gaps(tmp_path):
    draw_curves([{"epoch": 1, "train/loss": 1.0}, {"epoch": 2}], tmp_path / "curves.png", "title")
    assert pixels(tmp_path / "curves.png").std() > 5


def test_confusion_colours_the_share_of_the_row_and_writes_the_images(tmp_path, monkeypatch):
    made, figure = [], pictures._figure
    monkeypatch.setattr(pictures, "_figure", lambda *size: made.append(figure(*size)) or made[-1])
    pictures.draw_confusion(np.array([[2, 2], [0, 8]]), ["cat", "dog"], tmp_path / "c.png", "title")
    axes = made[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "2", (1, 0): "2", (1, 1): "8"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert pixels(tmp_path / "c.png").std() > 5


@pytest.mark.parametrize("classes", [2, 21, 41, 1000])
def test_confusion_of_many_classes(tmp_path, classes):
    draw_confusion(np.eye(classes, dtype=int), [f"class {n}" for n in range(classes)], tmp_path / "c.png", "title")
    assert 400 <= min(pixels(tmp_path / "c.png").shape[:2]) <= 2000


def test_confusion_of_a_class_without_images(tmp_path):
    draw_confusion(np.array([[3, 0], [0, 0]]), ["a", "b"], tmp_path / "c.png", "title")
    assert pixels(tmp_path / "c.png").std() > 5


def test_examples_are_green_or_red(tmp_path):
    draw_examples([(GREY, "a", "a", 0.9)] * 9, tmp_path / "right.png", "title")
    draw_examples([(GREY, "a", "b", 0.9)] * 9, tmp_path / "wrong.png", "title")
    right, wrong = pixels(tmp_path / "right.png"), pixels(tmp_path / "wrong.png")
    assert share_near(right, GREEN) > 0.0005 > share_near(right, RED)
    assert share_near(wrong, RED) > 0.0005 > share_near(wrong, GREEN)
    assert right.shape[0] == pytest.approx(120 * 4.5, abs=2)  # nine are two rows


@pytest.mark.parametrize("count, rows", [(1, 1), (2, 1), (3, 2)])
def test_predictions_stand_two_in_a_row(tmp_path, count, rows):
    colour = Image.new("RGB", (9, 4), (200, 20, 200))
    draw_predictions([(colour, "a.png", [("cat", 0.7), ("dog", 0.3)])] * count, tmp_path / "p.png")
    drawn = pixels(tmp_path / "p.png")
    assert drawn.shape[0] == pytest.approx(rows * 2.2 * 110, abs=2)
    assert share_near(drawn, (200, 20, 200), 5) > 0.02
    assert share_near(drawn, GREEN) > 0.02
