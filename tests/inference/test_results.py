"""Results say, draw and save themselves, and overwrite nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from longvision.data.io.colours import spread_colours
from longvision.inference.results import ClassResult, LabelResult, MaskResult, ObjectResult, palette_image
from longvision.types import Detections

CLASSES = ["road", "sky", "tree"]
PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
IMAGE = Image.new("RGB", (6, 4), "grey")
BOXES = np.array([[0, 0, 2, 2], [1, 1, 5, 3], [1, 1, 4, 3]], np.float32)


def results():
    mask_HW = np.zeros((4, 6), np.uint8)
    mask_HW[:, 2:] = 2
    found = Detections(BOXES, np.array([0.9, 0.5, 0.2], np.float32), np.array([1, 1, 0]))
    return [
        ClassResult("deep/a.jpg", IMAGE, CLASSES, np.array([0.125, 0.625, 0.25], np.float32)),
        MaskResult("deep/a.jpg", IMAGE, CLASSES, PALETTE, mask_HW, {0: 0.5, 2: 0.75}),
        ObjectResult("deep/a.jpg", IMAGE, CLASSES, PALETTE, found),
    ]


def test_classes_come_most_likely_first():
    result = results()[0]
    assert result.top(2) == [("sky", 0.625), ("tree", 0.25)]
    assert result.cells() == ["sky 62.5 %", "tree 25.0 %", "road 12.5 %"]
    assert result.to_dict()["file"] == "deep/a.jpg"
    assert result.to_dict()["top"][0] == {"class": "sky", "probability": 0.625}


def test_any_number_of_labels():
    result = LabelResult("deep/a.jpg", IMAGE, CLASSES, np.array([0.125, 0.625, 0.5], np.float32))
    assert result.labels() == ["sky", "tree"] and result.labels(0.6) == ["sky"]
    assert result.cells() == ["sky 62.5 %", "tree 50.0 %"] and result.cells(0.7) == ["nothing above 0.70"]
    assert result.to_dict(0.6) == {
        "file": "deep/a.jpg", "labels": ["sky"], "probabilities": {"sky": 0.625, "tree": 0.5, "road": 0.125},
    }  # fmt: skip


def test_pixels_come_the_largest_share_first():
    result = results()[1]
    assert result.cells() == ["tree 66.7 %", "road 33.3 %"]
    assert result.to_dict()["classes"][1] == {"class": "road", "pixels": pytest.approx(1 / 3), "score": 0.5}


def test_objects_are_counted_from_a_score_on_and_told_at_every_score():
    result = results()[2]
    assert result.cells() == ["sky × 2"]
    assert result.cells(0.1) == ["sky × 2, road × 1"] and result.cells(0.95) == ["nothing above 0.95"]
    assert [annotation["score"] for annotation in result.to_dict()["annotations"]] == [0.9, 0.5, 0.2]


@pytest.mark.parametrize(
    "number, endings", [(0, [".png", ".json"]), (1, [".png", "-mask.png"]), (2, [".png", ".json"])]
)
def test_files_have_the_image_s_name_and_overwrite_nothing(number, endings, tmp_path):
    result = results()[number]
    folder = tmp_path / "new"
    assert result.save(folder) == [folder / f"a{ending}" for ending in endings]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / f"a-2{endings[1]}").write_bytes(b"mine")
    assert result.save(folder) == [folder / f"a-3{ending}" for ending in endings]
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (folder / f"a-2{endings[1]}").read_bytes() == b"mine" and len(list(folder.iterdir())) == 5
    with Image.open(folder / "a.png") as drawn:
        assert drawn.convert("RGB").tobytes() == result.image().tobytes()
    if endings[1] == ".json":
        assert json.loads((folder / "a.json").read_text(encoding="utf-8")) == json.loads(json.dumps(result.to_dict()))
    else:
        with Image.open(folder / "a-mask.png") as mask:
            assert mask.mode == "P" and np.array_equal(np.asarray(mask), result.mask_HW)


@pytest.mark.parametrize("classes", [2, 16, 150, 255])
def test_a_palette_image_holds_the_class_numbers_and_their_colours(classes, tmp_path):
    mask = np.random.default_rng(0).integers(0, classes, (20, 31), dtype=np.uint8)
    mask[0, 0], mask[5, 5] = 255, classes - 1
    palette = spread_colours(classes)
    palette_image(mask, palette).save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as stored:
        assert (stored.format, stored.mode) == ("PNG", "P")
        assert (np.asarray(stored) == mask).all()
        shown = stored.convert("RGB")
    assert shown.getpixel((0, 0)) == (255, 255, 255) and shown.getpixel((5, 5)) == palette[classes - 1]
