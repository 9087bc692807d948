import hashlib

import numpy as np
import pytest

from longvision.data.sources import scattered, scattered_canvas
from longvision.data.sources.scattered import ScatteredDigits, Scene, draw_labels, unique_most

pytest.importorskip("sklearn.datasets")


def scenes(split="train", count=12, size=(128, 128), **more) -> list[Scene]:
    made = ScatteredDigits(split, count, size, **more)
    return [made.scene(index) for index in range(len(made))]


def digest(scene: Scene) -> str:
    parts = (np.asarray(scene.image), scene.class_map_HW, scene.boxes_N4, scene.labels_N, scene.instance_HW)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("split", "size", "expected"),
    [("train", (128, 128), "98fe82161b966f4f"), ("test", (200, 333), "6fd3f456c91e2206")],
)
def test_an_image_is_the_same_on_every_machine(split, size, expected):
    assert digest(ScatteredDigits(split, 8, size, seed=3).scene(5)) == expected


def test_seed_split_number_and_size_each_make_another_image():
    def first(split="train", size=(64, 64), seed=0, index=0):
        return digest(ScatteredDigits(split, 2, size, seed=seed).scene(index))

    pictures = {first(), first("val"), first("test"), first(seed=1), first(index=1), first(size=(64, 65))}
    assert len(pictures) == 6


def test_how_many_images_there_are_changes_none_of_them():
    assert digest(ScatteredDigits("val", 3).scene(2)) == digest(ScatteredDigits("val", 300).scene(2))


def test_shapes_and_types():
    for scene in scenes(size=(96, 160)):
        count = len(scene.labels_N)
        assert scene.image.mode == "L" and scene.image.size == (160, 96)
        assert scene.class_map_HW.shape == (96, 160) and scene.class_map_HW.dtype == np.uint8
        assert scene.boxes_N4.shape == (count, 4) and scene.boxes_N4.dtype == np.float32
        assert scene.labels_N.shape == (count,) and scene.labels_N.dtype == np.int64
        assert scene.masks_NHW.shape == (count, 96, 160) and scene.masks_NHW.dtype == bool
        assert count >= 1


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (256, 256)])
def test_masks_boxes_and_classes_agree(size):
    for scene in scenes(size=size):
        assert scene.masks_NHW.sum(0).max() == 1  # disjoint
        class_map = np.zeros(size, np.uint8)
        for mask, box, label in zip(scene.masks_NHW, scene.boxes_N4, scene.labels_N, strict=True):
            class_map[mask] = label + 1
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.array_equal(class_map, scene.class_map_HW)


def test_no_digit_touches_another_though_boxes_overlap():
    nearest, boxes_overlap = [], False
    for scene in scenes(count=40, size=(96, 96), digits=(10, 14)):
        for number, mask in enumerate(scene.masks_NHW):
            others = np.pad(scene.masks_NHW.any(0) & ~mask, 3)
            for row, column in np.argwhere(mask):
                near = np.argwhere(others[row : row + 7, column : column + 7])
                nearest.append(np.abs(near - 3).max(1).min() if len(near) else 4)
            x1, y1, x2, y2 = scene.boxes_N4[number].astype(int)
            boxes_overlap |= others[3:-3, 3:-3][y1:y2, x1:x2].any()
    assert min(nearest) == scattered.GAP + 1 and boxes_overlap


def test_every_digit_is_whole(monkeypatch):
    placed = []
    monkeypatch.setattr(scattered, "unique_most", lambda digits: placed.append(digits) or unique_most(digits))
    for scene, digits in zip(scenes(count=20, size=(96, 96), digits=(10, 14)), placed, strict=True):
        pixels = [digit.solid_hw.sum() for digit in unique_most(digits)]
        assert scene.masks_NHW.sum((1, 2)).tolist() == pixels


@pytest.mark.parametrize("split", scattered.SPLITS)
def test_every_scan_shows_at_the_smallest_size(split):
    side = scattered.SIDES[0]
    strokes = [
        scattered_canvas.sharpened(scattered_canvas.enlarged(ink, side, side))
        for ink in ScatteredDigits(split, 1).ink_DHW
    ]
    assert all((ink_hw >= 0.5).any() for ink_hw in strokes)


def painted(grey: int) -> list[int]:
    """The levels that digits get on a canvas of one grey; only they are changed."""
    levels = []
    for seed in range(50):
        canvas_HW = np.full((20, 24), grey, np.uint8)
        digit = scattered.Placed(3, 5, 6, np.ones((8, 10)))
        scattered_canvas.paint(np.random.Generator(np.random.PCG64(seed)), canvas_HW, digit.where, digit.ink_hw)
        (level,) = np.unique(canvas_HW[digit.where]).tolist()
        canvas_HW[digit.where] = grey
        assert (canvas_HW == grey).all()
        levels.append(level)
    return levels


@pytest.mark.parametrize("grey", [0, 100, 207])
def test_a_digit_is_33_levels_lighter_than_a_plain_canvas(grey):
    assert min(painted(grey)) >= grey + 33


def test_a_digit_on_the_lightest_canvas_is_as_light_as_bytes_allow():
    assert min(painted(250)) >= 256 - scattered_canvas.BIN


def test_every_digit_is_lighter_than_what_is_around_it():
    contrast = []
    for scene in scenes(count=30):
        grey = np.asarray(scene.image).astype(int)
        for mask, (x1, y1, x2, y2) in zip(scene.masks_NHW, scene.boxes_N4.astype(int), strict=True):
            around = grey[y1:y2, x1:x2][scene.instance_HW[y1:y2, x1:x2] == 0]
            contrast.append(np.median(grey[mask]) - np.median(around))
    assert min(contrast) > 30


def test_one_digit_occurs_most():
    found = []
    for scene in scenes(count=60, size=(128, 128)) + scenes(count=20, size=(40, 40)):
        counts = np.bincount(scene.labels_N, minlength=10)
        assert counts[scene.most] == counts.max()
        assert (counts == counts.max()).sum() == 1
        found.append(scene.most)
    assert len(set(found)) == 10  # each of them somewhere


def test_a_tie_among_those_that_found_a_place_is_broken():
    digits = [scattered.Placed(label, 0, 0, np.ones((2, 2))) for label in (3, 5, 5, 3, 1, 5, 3)]
    assert [digit.label for digit in unique_most(digits)] == [3, 5, 5, 3, 1, 3]
    assert [digit.label for digit in unique_most(digits[:1])] == [3]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 30, 300])
def test_drawn_labels_are_as_many_as_asked_with_one_in_front(count):
    random = np.random.Generator(np.random.PCG64(0))
    for _ in range(20):
        labels = draw_labels(random, count)
        first, second = np.sort(np.bincount(labels, minlength=10))[[-1, -2]]
        assert len(labels) == count and first > second


def test_digits_grow_in_number_with_the_area():
    assert scattered_canvas.usual_digits(128, 128) == (4, 10)
    assert scattered_canvas.usual_digits(256, 256) == (12, 30)
    assert scattered_canvas.usual_digits(4096, 4096) == (120, 300)
    assert np.mean([len(scene.labels_N) for scene in scenes(size=(256, 256))]) > 12


@pytest.mark.parametrize("side", [128, 256])
def test_half_of_the_digits_tried_find_a_place(side):
    shown = [len(scene.labels_N) for scene in scenes(count=30, size=(side, side))]
    assert np.mean(shown) >= np.mean(scattered_canvas.usual_digits(side, side)) / 2


def test_the_smallest_canvas_shows_one_digit():
    assert [len(scene.labels_N) for scene in scenes(count=30, size=(32, 32))] == [1] * 30


def test_test_images_show_scans_of_their_own(monkeypatch):
    asked = []
    monkeypatch.setattr(
        scattered,
        "load_digits_split",
        lambda split, load=scattered.load_digits_split: asked.append(split) or load(split),
    )
    sets = [ScatteredDigits(split, 1) for split in ("train", "val", "test")]
    assert asked == ["train", "val", "test"]
    assert [len(one.ink_DHW) for one in sets] == [1293, 144, 360]


def test_enlarging_is_bilinear():
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).random((10, 10))
    theirs = torch.nn.functional.interpolate(torch.from_numpy(grid)[None, None], (37, 23), mode="bilinear")
    assert np.allclose(scattered_canvas.enlarged(grid, 37, 23), theirs[0, 0].numpy())


def test_the_rows_worked_on_at_a_time_change_nothing(monkeypatch):
    at_once = scattered_canvas.texture(np.random.Generator(np.random.PCG64(0)), 200, 64)
    monkeypatch.setattr(scattered_canvas, "BAND", 7)
    assert np.array_equal(scattered_canvas.texture(np.random.Generator(np.random.PCG64(0)), 200, 64), at_once)
    assert np.ptp(at_once.astype(int)) > 20


def test_a_large_image_needs_little_memory():
    import tracemalloc

    made = ScatteredDigits("train", 1, (4096, 4096))
    tracemalloc.start()
    scene = made.scene(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 4096**2  # bytes: the image takes 1 a pixel, the map of instances 2
    assert len(scene.labels_N) > 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": (31, 64)}, "size 31x64: expected sides from 32"),
        ({"size": (64, 20000)}, "size 64x20000"),
        ({"count": 0}, "0 images"),
        ({"seed": -1}, "seed -1"),
        ({"digits": (0, 3)}, "digits 0 to 3"),
        ({"digits": (5, 3)}, "digits 5 to 3"),
    ],
)
def test_what_cannot_be_made(arguments, words):
    with pytest.raises(ValueError, match=words):
        ScatteredDigits(**{"split": "train", "count": 1} | arguments)


def test_no_image_past_the_last():
    with pytest.raises(IndexError, match="image 2 of 2"):
        ScatteredDigits("train", 2).scene(2)
