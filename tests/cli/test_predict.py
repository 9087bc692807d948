"""`longvision predict`: a table, JSON, or a picture; and what happens to files that are no images."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.inference.predictor import Predictor


@pytest.fixture
def three(tmp_path):
    """Three scans of digits, two of them in a folder."""
    from longvision.data.sources.digits import load_digits_split

    digits = load_digits_split("test")
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    paths = [tmp_path / "scans" / "a.png", tmp_path / "scans" / "deep" / "b.png", tmp_path / "c.png"]
    for row, path in enumerate(paths):
        digits[row][0].save(path)
    return paths


def test_json(longvision, digits_run, three):
    answer = longvision("predict", digits_run, *three, "--json")
    assert (answer.code, answer.err) == (0, "")
    rows = json.loads(answer.out)
    assert [row["file"] for row in rows] == [str(path) for path in three]
    for row in rows:
        shares = [best["probability"] for best in row["top"]]
        assert len(shares) == 5
        assert shares == sorted(shares, reverse=True)
        assert min(shares) > 0 and 0.5 < sum(shares) <= 1 + 1e-6  # five of ten, the most likely ones
        assert len({best["class"] for best in row["top"]} & set("0123456789")) == 5
    assert not list(Path().glob("predictions-*.png"))


def test_probabilities_of_all_classes_sum_to_one(longvision, folder_run, images):
    (row,) = json.loads(longvision("predict", folder_run, images / "test" / "dark" / "0.jpg", "--json").out)
    assert sum(best["probability"] for best in row["top"]) == pytest.approx(1)
    assert {best["class"] for best in row["top"]} == {"dark", "light"}


def test_the_model_and_its_preprocessing_are_the_run_s(longvision, folder_run, images):
    """The same numbers by hand: the image, normalised, through the weights of the run."""
    path = images / "test" / "light" / "1.png"
    predictor = Predictor(folder_run / "model.safetensors")
    with Image.open(path) as image, torch.inference_mode():
        shares = predictor.model(predictor.preprocess.transform()(image)[None]).softmax(1)[0]
    (row,) = json.loads(longvision("predict", folder_run, path, "--json").out)
    by_class = {best["class"]: best["probability"] for best in row["top"]}
    assert by_class == pytest.approx({"dark": float(shares[0]), "light": float(shares[1])}, rel=1e-5)


def test_the_table(longvision, digits_run, three):
    answer = longvision("predict", digits_run, *three)
    folder, *table, picture = answer.out.splitlines()
    assert folder.startswith("in ") and Path(folder.removeprefix("in ")).is_dir()
    assert len(table) == 3
    rows = json.loads(longvision("predict", digits_run, *three, "--json").out)
    for line, row in zip(table, rows):
        assert line.startswith(os.path.relpath(row["file"], folder.removeprefix("in ")) + " ")
        first = row["top"][0]
        assert f"  {first['class']} {100 * first['probability']:.1f} %" in line
    assert picture == "picture: predictions-1.png"


def test_the_table_of_one_image_names_it_as_it_was_given(longvision, digits_run, three):
    line = longvision("predict", digits_run, three[0]).out.splitlines()[0]
    assert line.startswith(f"{three[0]}  ")


def test_folders_are_searched(longvision, digits_run, three):
    rows = json.loads(longvision("predict", digits_run, "scans", "--json").out)
    assert [row["file"] for row in rows] == ["scans/a.png", "scans/deep/b.png"]


def test_pictures_are_never_overwritten(longvision, digits_run, three):
    for number in (1, 2):
        assert f"predictions-{number}.png" in longvision("predict", digits_run, three[0]).out
    first = Path("predictions-1.png").read_bytes()
    longvision("predict", digits_run, *three)
    assert Path("predictions-1.png").read_bytes() == first
    with Image.open("predictions-3.png") as three_rows, Image.open("predictions-1.png") as one_row:
        assert three_rows.format == "PNG"
        assert three_rows.size[0] == pytest.approx(2 * one_row.size[0], abs=3)  # two in a row
        assert three_rows.size[1] == pytest.approx(2 * one_row.size[1], abs=3)
        assert np.asarray(three_rows.convert("L")).std() > 5


def test_a_picture_where_asked(longvision, digits_run, three):
    assert "picture: mine.png" in longvision("predict", digits_run, three[0], "--picture", "mine.png").out
    assert Image.open("mine.png").format == "PNG"
    assert not Path("predictions-1.png").exists()


def test_bad_files_are_named_counted_and_skipped(longvision, digits_run, three):
    Path("bad.png").write_text("no image")
    Path("cut.png").write_bytes(three[0].read_bytes()[:60])
    Path("empty.png").touch()
    answer = longvision("predict", digits_run, "bad.png", three[0], "cut.png", "empty.png", "--json")
    assert answer.code == 0
    assert len(json.loads(answer.out)) == 1
    lines = answer.err.splitlines()
    assert [name in line for name, line in zip(("bad.png", "cut.png", "empty.png"), lines)] == [True] * 3
    assert lines[-1] == "longvision predict: 3 of 4 files have no answer"
    assert len(lines) == 4


def test_no_more_than_ten_bad_files_are_named(longvision, digits_run, three):
    for number in range(12):
        Path(f"bad{number}.png").write_text("no image")
    lines = longvision("predict", digits_run, *Path().glob("bad*.png"), three[0], "--json").err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "longvision predict: 12 of 13 files have no answer"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_none_was_good(longvision, digits_run, options):
    Path("bad.png").write_text("no image")
    answer = longvision("predict", digits_run, "bad.png", *options)
    assert answer.code == 1
    assert "bad.png" in answer.err
    assert (json.loads(answer.out) if options else answer.out) == ([] if options else "")
    assert not list(Path().glob("predictions-*.png"))


def test_the_run_is_enough(longvision, folder_run, images, tmp_path):
    """Prediction needs neither the data nor anything but the weights and the folder's config.yaml."""
    (tmp_path / "moved").mkdir()
    for name in ("model.safetensors", "config.yaml"):
        (tmp_path / "moved" / name).write_bytes((folder_run / name).read_bytes())
    image = images / "test" / "dark" / "0.jpg"
    moved, original = (longvision("predict", run, image, "--json").out for run in ("moved", folder_run))
    assert moved == original


def test_a_picture_of_any_mode_and_size(longvision, folder_run):
    for mode, size in [("1", (5, 90)), ("P", (300, 7)), ("RGBA", (33, 33)), ("I;16", (16, 16)), ("CMYK", (20, 20))]:
        Image.new(mode, size).save(f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
    answer = longvision("predict", folder_run, *sorted(Path().iterdir()), "--json")
    assert (answer.code, answer.err) == (0, "")
    assert len(json.loads(answer.out)) == 5
