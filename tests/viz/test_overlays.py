"""Predictions are drawn where they are, readable at any size."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.io.colours import spread_colours
from longvision.types import Detections, Target
from longvision.viz import overlays
from longvision.viz.overlays import titled

CLASSES = ["road", "sky", "tree"]
PALETTE = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
GREY = (100, 100, 100)


@pytest.fixture
def panels(monkeypatch):
    """The panels of every sheet, by their titles."""
    made, side_by_side = {}, overlays.side_by_side
    monkeypatch.setattr(overlays, "side_by_side", lambda p, legend: made.update(p) or side_by_side(p, legend))
    return made


def plain(width, height):
    return Image.new("RGB", (width, height), GREY)


def mixed(colour):
    return [round(0.55 * c + 0.45 * g) for c, g in zip(colour, GREY, strict=True)]


def objects(*boxes, labels=None, scores=None, masks=None):
    """Detections where there are scores, else a target."""
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels_N = torch.tensor(labels if labels is not None else [0] * len(boxes), dtype=torch.long)
    masks_NHW = None if masks is None else torch.as_tensor(masks)
    if scores is None:
        return Target(boxes_N4, labels_N, torch.zeros(len(boxes)).bool(), masks_NHW)
    return Detections(boxes_N4, torch.tensor(scores), labels_N, masks_NHW)


def draw_segmentation(image, mask, classes, palette, truth=None, scores=None):
    masks = {"prediction": mask} | ({} if truth is None else {"truth": truth})
    return overlays.draw_segmentation(image, masks, classes, palette, scores)


def draw_objects(image, found, classes, palette, truth=None, threshold=0.5):
    sets = {"prediction": found} | ({} if truth is None else {"truth": truth})
    return overlays.draw_objects(image, sets, classes, palette, threshold)


# -- segmentation


def test_each_class_lies_over_its_pixels_and_is_full_at_the_border(panels):
    mask = np.zeros((400, 600), np.uint8)
    mask[:, 200:], mask[:, 400:] = 1, 255
    draw_segmentation(plain(600, 400), mask, CLASSES, PALETTE)
    assert list(panels) == ["image", "prediction"]
    drawn = np.asarray(panels["prediction"])
    assert drawn.shape == (400, 600, 3)
    assert drawn[200, 100].tolist() == mixed(PALETTE[0]) and drawn[200, 300].tolist() == mixed(PALETTE[1])
    assert drawn[200, 500].tolist() == mixed((255, 255, 255))  # ignored
    assert drawn[200, 199].tolist() == list(PALETTE[0]) and drawn[200, 200].tolist() == list(PALETTE[1])
    assert (np.asarray(panels["image"]) == GREY).all()


def test_the_legend_says_shares_of_prediction_and_truth_the_largest_first(written):
    mask, truth = np.zeros((10, 10), np.uint8), np.full((10, 10), 255, np.uint8)
    mask[:6], truth[0] = 2, 1
    sheet = draw_segmentation(plain(10, 10), mask, CLASSES, PALETTE, truth)
    assert [t["text"] for t in written if "%" in t["text"]] == [
        "tree  60.0 % (truth 0.0 %)",
        "road  40.0 % (truth 0.0 %)",
        "ignored  0.0 % (truth 90.0 %)",
        "sky  0.0 % (truth 10.0 %)",
    ]
    drawn = {colour for _, colour in sheet.getcolors(maxcolors=1 << 24)}
    assert set(PALETTE) <= drawn


def test_a_share_that_would_round_to_nothing_is_said_to_be_something(written):
    mask = np.zeros((100, 100), np.uint8)
    mask[0, 0] = 1
    draw_segmentation(plain(100, 100), mask, CLASSES, PALETTE)
    assert "sky  <0.1 %" in [t["text"] for t in written]


def test_the_legend_says_scores(written):
    draw_segmentation(plain(10, 10), np.ones((10, 10), np.uint8), CLASSES, PALETTE, scores={1: 0.934})
    assert "sky  100.0 %, score 0.93" in [text["text"] for text in written]


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (480, 360), (3000, 200), (200, 3000), (2500, 2500)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_image_is_readable(size, mode, panels, written):
    width, height = size
    mask = np.random.default_rng(0).integers(0, 60, (height, width), dtype=np.uint8)
    names = [f"a class with quite a long name, number {n}" for n in range(60)]
    sheet = draw_segmentation(plain(width, height).convert(mode), mask, names, spread_colours(60), mask)
    shown = panels["prediction"].size
    assert max(shown) <= 1024 and max(shown) >= 320
    assert shown[0] / width == pytest.approx(shown[1] / height, rel=0.02)
    assert all(text["inside"] and text["size"] >= 12 for text in written)
    assert max(text["box"][2] for text in written) + 17 <= sheet.width  # the legend's left margin
    if size != (1, 1):
        assert sum("%" in text["text"] for text in written) == 24
        assert "and 36 more" in [text["text"] for text in written]


def test_small_images_keep_their_pixels(panels):
    colours = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    draw_segmentation(Image.fromarray(colours), np.zeros((32, 32), np.uint8), CLASSES, PALETTE)
    assert (np.asarray(panels["image"]) == colours.repeat(10, 0).repeat(10, 1)).all()


def test_panels_stand_side_by_side_and_wide_ones_below_each_other(written):
    flat = np.zeros((200, 200), np.uint8)
    side = draw_segmentation(plain(200, 200), flat, CLASSES, PALETTE, flat)
    below = draw_segmentation(plain(2000, 100), np.zeros((100, 2000), np.uint8), CLASSES, PALETTE)
    titles = [t["box"] for t in written if t["text"] in ("image", "prediction", "truth")]
    assert titles[0][0] < titles[1][0] < titles[2][0] and side.width > 2 * side.height
    assert titles[3][0] == titles[4][0] and titles[3][3] < titles[4][1] and below.width < 1200


def test_titles_over_narrow_images_do_not_run_into_each_other(written):
    draw_objects(plain(100, 2000), objects(scores=[]), CLASSES, PALETTE, objects())
    boxes = [t["box"] for t in written]
    assert len(boxes) == 3 and all(left[2] < right[0] for left, right in pairwise(boxes))


def test_legend_lines_lie_beside_each_other_without_touching(written):
    mask = np.arange(60, dtype=np.uint8).repeat(60).reshape(60, 60)
    draw_segmentation(plain(60, 60), mask, [f"class {n}" for n in range(60)], spread_colours(60))
    boxes = [t["box"] for t in written if "%" in t["text"]]
    assert len({box[0] for box in boxes}) > 1  # columns
    assert not any(overlays._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_mask_of_another_size_or_with_unknown_classes_is_refused():
    with pytest.raises(ValueError, match="scale it"):
        draw_segmentation(plain(9, 8), np.zeros((9, 8), np.uint8), CLASSES, PALETTE)
    with pytest.raises(ValueError, match="the truth has class 3: expected 0 to 2"):
        draw_segmentation(plain(8, 8), np.zeros((8, 8), np.uint8), CLASSES, PALETTE, np.full((8, 8), 3, dtype=np.uint8))


# -- objects


def test_boxes_and_masks_are_drawn_where_they_are(panels):
    mask = np.zeros((1, 400, 400), bool)
    mask[0, 150:200, 150:200] = True
    draw_objects(plain(400, 400), objects([100, 120, 300, 340], scores=[0.97], masks=mask), CLASSES, PALETTE)
    drawn = np.asarray(panels["prediction: 1 object above 0.50"])
    for x, y in ((100, 250), (300, 250), (200, 340)):
        assert drawn[y, x].tolist() == list(PALETTE[0])
    assert drawn[250, 95].tolist() == drawn[250, 305].tolist() == list(GREY)
    assert drawn[175, 175].tolist() == mixed(PALETTE[0]) and drawn[150, 175].tolist() == list(PALETTE[0])
    assert drawn[300, 250].tolist() == list(GREY)


def test_boxes_grow_and_shrink_with_the_image(panels):
    for side in (40, 2048):
        box = [side / 4, side / 4, side / 2, side / 2]
        draw_objects(plain(side, side), objects(box, scores=[0.9]), CLASSES, PALETTE)
        drawn = np.asarray(panels["prediction: 1 object above 0.50"])
        coloured = np.argwhere((drawn == PALETTE[0]).all(-1))
        assert coloured.max(0).tolist() == [len(drawn) // 2] * 2  # the tag is above


def test_only_what_scores_enough_is_drawn_and_counted(panels, written):
    found = objects(*[[10, 10, 50, 50]] * 3, labels=[0, 1, 1], scores=[0.4, 0.5, 0.97])
    draw_objects(plain(200, 200), found, CLASSES, PALETTE, objects([10, 10, 50, 50], labels=[2]))
    texts = [t["text"] for t in written]
    assert list(panels) == ["image", "prediction: 2 objects above 0.50", "truth: 1 object"]
    assert "sky 0.97" in texts and "sky 0.50" in texts and "tree" in texts and "road 0.40" not in texts
    assert "sky  × 2 (truth 0)" in texts and "tree  × 0 (truth 1)" in texts


def test_nothing_found_is_said(written):
    none = objects(scores=[], masks=np.zeros((0, 50, 60), bool))
    draw_objects(plain(60, 50), none, CLASSES, PALETTE, objects())
    draw_objects(plain(60, 50), objects([1, 1, 9, 9], scores=[0.7]), CLASSES, PALETTE, threshold=0.75)
    texts = [t["text"] for t in written]
    assert "prediction: no objects above 0.50" in texts and "truth: no objects" in texts
    assert "prediction: no objects above 0.75" in texts


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (640, 480), (3000, 200), (200, 3000)])
def test_labels_stay_inside(size, written):
    width, height = size
    corners = [(0, 0), (0.9, 0), (0, 0.9), (0.9, 0.9), (0.4, 0.4)]
    boxes = [[x * width, y * height, (x + 0.1) * width, (y + 0.1) * height] for x, y in corners]
    boxes.append([-0.5 * width, -0.5 * height, 1.5 * width, 1.5 * height])
    found = objects(*boxes, scores=[0.9] * len(boxes))
    draw_objects(plain(width, height), found, ["a class with a name that is not short"], PALETTE, found)
    assert all(text["inside"] and text["size"] >= 12 for text in written)
    assert sum(text["text"].endswith("0.90") for text in written) == 12


def test_labels_avoid_each_other(written):
    found = objects(*[[100, 100, 300, 300]] * 4, scores=[0.9, 0.8, 0.7, 0.6])
    draw_objects(plain(400, 400), found, CLASSES, PALETTE)
    boxes = [t["box"] for t in written if t["text"].startswith("road 0.")]
    assert len(boxes) == 4 and not any(overlays._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("colour, ink", [((250, 240, 90), 0), ((10, 20, 120), 255)])
def test_labels_are_dark_on_light_and_light_on_dark(colour, ink, panels):
    draw_objects(plain(200, 200), objects([50, 50, 150, 150], scores=[0.9]), CLASSES, [colour])
    drawn = np.asarray(panels["prediction: 1 object above 0.50"])
    near = (np.abs(drawn.astype(int) - ink) < 60).all(-1)
    assert near.sum() > 20


# -- classes


def test_a_class_is_said_over_its_image(written, panels):
    titled(plain(40, 30), "three")
    assert [text["text"] for text in written] == ["three"] == list(panels)


# -- real images


@pytest.mark.shared
def test_a_street_is_drawn_with_its_truth(shared, panels, written):
    folder = shared / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    path = sorted((folder / "valannot").iterdir())[0]
    truth = np.array(Image.open(path))
    truth[truth == 11] = 255
    names = [f"class {n}" for n in range(11)]
    with Image.open(folder / "val" / path.name) as street:
        sheet = draw_segmentation(street, np.where(truth == 255, 0, truth), names, spread_colours(11), truth)
    assert list(panels) == ["image", "prediction", "truth"]
    assert 1440 < sheet.width < 1700
    assert panels["prediction"].size == panels["truth"].size == (480, 360)
    ignored = np.asarray(panels["truth"])[truth == 255]
    assert (ignored >= 140).all()  # at least 0.55 of white
    occurring = {f"class {k}" for k in np.unique(truth) if k != 255}
    assert occurring <= {text["text"].split("  ")[0] for text in written}
