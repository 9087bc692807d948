import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("faster_coco_eval")

from longvision.data.io.coco_masks import is_empty
from longvision.data.io.object_masks import ObjectMasks
from longvision.data.sources.coco import CocoSource
from longvision.data.sources.coco_files import load_json
from longvision.errors import UserError
from support.outlines import outline

HEIGHT, WIDTH = 40, 60
SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]


def image(number, **changes):
    return {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} | changes


def thing(number, picture=1, category=7, bbox=(10, 10, 10, 10), **changes):
    found = {"id": number, "image_id": picture, "category_id": category, "bbox": list(bbox)}
    return found | {"segmentation": outline(bbox)} | changes


def content(annotations, images=(1, 2), categories=((7, "cat"), (3, "dog"))):
    return {
        "images": [image(number) for number in images],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


@pytest.fixture
def write(tmp_path):
    """Writes a COCO set with these training labels (and validation labels), and all images that they may list."""

    def written(train, val=None):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        for split, labels in (("train", train), ("val", val or content([thing(1)]))):
            folder = tmp_path / f"{split}2017"
            folder.mkdir(exist_ok=True)
            for number in (1, 2):
                Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"{number}.png")
            text = labels if isinstance(labels, str) else json.dumps(labels)
            (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(text)
        return tmp_path

    return written


def test_a_set(write):
    source = CocoSource(write(content([thing(1, 2), thing(2, 2, category=3, bbox=(0.5, 1, 20, 30.25), iscrowd=1)])))
    assert source.classes == ["dog", "cat"]
    assert (source.has_masks, source.has_test, len(source.palette)) == (True, False, 2)
    source.check("train")
    pictures = source.split("train")
    picture, target = pictures[1]
    assert (len(pictures), Path(pictures.items[1].file).name, picture.getpixel((0, 0))) == (2, "2.png", (2, 0, 0))
    assert target.image_id == 2
    assert target.boxes.tolist() == [[10, 10, 20, 20], [0.5, 1, 20.5, 31.25]]
    assert target.labels.tolist() == [1, 0]
    assert target.iscrowd.tolist() == [False, True]
    assert (target.masks.shape, target.masks.drawn().dtype) == ((2, HEIGHT, WIDTH), torch.bool)


def test_images_without_objects_stay(write):
    _, target = CocoSource(write(content([thing(1)]))).split("train")[1]
    assert target.boxes.shape == (0, 4)
    assert target.masks.shape == (0, HEIGHT, WIDTH)


def test_class_numbers_come_from_the_training_file(write):
    val = content([thing(1, category=7)], categories=((1, "bird"), (7, "cat")))
    source = CocoSource(write(content([thing(1)]), val))
    assert source.split("val")[0][1].labels.tolist() == [1]


def test_boxes_up_to_a_pixel_over_the_edge_are_cut(write):
    source = CocoSource(write(content([thing(1, bbox=(-0.5, 30, 20, 10.75))])))
    source.check("train")
    assert source.split("train")[0][1].boxes.tolist() == [[0, 30, 19.5, 40]]


def test_without_segmentations_there_are_no_masks(write):
    source = CocoSource(write(content([thing(1, segmentation=[]), thing(2, segmentation=None)])))
    assert not source.has_masks
    assert source.split("train")[0][1].masks is None


def test_with_some_segmentations_there_are_no_masks_and_a_word(write):
    with pytest.warns(UserWarning, match=r"1 of the 2 annotations .* \(annotation 2 of image 1\): masks are not used"):
        source = CocoSource(write(content([thing(1), thing(2, segmentation=[])])))
    assert not source.has_masks


def test_other_files_and_folders(write):
    root = write(content([thing(1)]))
    (root / "mine").mkdir()
    (root / "annotations/instances_val2017.json").rename(root / "mine/labels.json")
    (root / "val2017").rename(root / "mine/pictures")
    source = CocoSource(root, val=("mine/labels.json", "mine/pictures"), test=("mine/labels.json", "mine/pictures"))
    source.check("val")
    assert source.has_test
    assert len(source.split("test")) == 2


def test_images_in_a_folder_of_folders(write):
    root = write(content([thing(1)]))
    (root / "images").mkdir()
    for split in ("train", "val"):
        (root / f"{split}2017").rename(root / f"images/{split}2017")
    CocoSource(root).check("train")


def test_the_file_of_a_test_is_found(write):
    root = write(content([thing(1)]))
    (root / "annotations/instances_test2017.json").write_text(json.dumps(content([thing(1)])))
    (root / "test2017").mkdir()
    assert CocoSource(root).has_test


@pytest.mark.parametrize(
    "annotations, message",
    [
        (
            [thing(5, bbox=(50, 10, 12, 5))],
            r"boxes in .*json lie outside .* \(annotation 5 of image 1: \[50, 10, 12, 5\]",
        ),
        ([thing(5, 2, bbox=(10, 10, 0, 5))], r"1 of the 1 boxes in .* have no area \(annotation 5 of image 2: "),
        ([thing(5, bbox=(60, 10, 0.5, 5))], r"1 of the 1 boxes in .* have no area \(annotation 5 of image 1: "),
        ([thing(5, bbox=(float("nan"), 1, 1, 1))], r"boxes in .*json lie outside"),
        (
            [thing(5, picture=9)],
            r"annotations in .* belong to images that it does not list \(annotation 5 of image 9\)",
        ),
        (
            [thing(5, category=4)],
            r"annotations in .* have categories that it does not list \(annotation 5: category 4\)",
        ),
        (
            [thing(5, segmentation=[[1, 2, 3, 4]])],
            r"1 of the 1 segmentations .* cover nothing.* \(annotation 5 of image 1",
        ),
        (
            [thing(5, segmentation={"size": [WIDTH, HEIGHT], "counts": [0, 2400]})],
            r"annotations in .* have no segmentation that can be drawn \(annotation 5 of image 1\)",
        ),
        (
            [thing(5, segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 9999]})],
            r"annotations in .* have no segmentation that can be drawn",
        ),
        ([thing(n, category=4) for n in range(12)], r"^annotations .*annotation 9: category 4, … 12 in all\)"),
    ],
)
def test_faults_of_the_labels(write, annotations, message):
    source = CocoSource(write(content(annotations)))
    with pytest.raises(UserError, match=message) as caught:
        source.check("train")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):  # nor may it be used without a check
        source.split("train")


def test_one_slip_in_a_hundred_is_left_out(write):
    slips = [thing(number) for number in range(99)] + [thing(99, bbox=(10, 10, 5, 0))]
    source = CocoSource(write(content(slips)))
    with pytest.warns(UserWarning, match=r"1 of the 100 boxes in .* have no area \(annotation 99 of image 1: "):
        source.check("train")
    target = source.split("train")[0][1]
    assert len(target.boxes) == len(target.masks) == 99


def test_categories_that_change_their_meaning(write):
    val = content([thing(1, category=3)], categories=((3, "horse"), (7, "cat")))
    source = CocoSource(write(content([thing(1)]), val))
    source.check("train")
    with pytest.raises(
        UserError, match=r"categories of .*val2017\.json are not those of .*train2017\.json \(3 horse\)"
    ):
        source.check("val")


def test_faults_of_the_images(write):
    root = write(content([thing(1)]))
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train2017/2.png")
    with pytest.raises(
        UserError,
        match=rf"\(2\.png is {HEIGHT} wide and {WIDTH} high, not {WIDTH} wide.*: width and height are exchanged",
    ):
        CocoSource(root).check("train")
    (root / "train2017/2.png").unlink()
    with pytest.raises(UserError, match=r"images that .*train2017\.json lists do not exist \(.*2\.png\)"):
        CocoSource(root).check("train")


@pytest.mark.parametrize(
    "labels, message",
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "has no list of images"),
        ({"images": [image(1)], "annotations": []}, "has no annotations: expected at least one"),
        ({"images": [image(1)], "annotations": [thing(1)]}, "has no list of categories"),
        (content([thing(1)], images=()), "has no images: expected at least one"),
        (content([{"id": 1, "image_id": 1, "category_id": 7}]), "number 0 of its annotations has no bbox"),
        (content([7]), "number 0 of its annotations has no image_id"),
        (
            content([thing(1, bbox=(1, 2, 3))]),
            r"number 0 of its annotations has bbox \[1, 2, 3\]: expected four numbers",
        ),
        (content([thing(1, bbox=(1, 2, 3, "4"))]), r"has bbox \[1, 2, 3, .4.\]: expected four numbers"),
        (content([thing(1), thing(2, category=[1])]), r"number 1 of its annotations has category_id \[1\]: expected a"),
        (content([thing(1, picture={})]), r"number 0 of its annotations has image_id \{\}: expected a number or text"),
        (content([thing(1)], categories=((7, 5),)), "number 0 of its categories has name 5: expected text"),
    ],
)
def test_files_that_are_no_annotations(write, labels, message):
    with pytest.raises(UserError, match=message) as caught:
        CocoSource(write(labels))
    assert "instances_train2017.json" in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"height": "30"}, 'height "30": expected a whole number'),
        ({"height": None}, "height null: expected a whole number"),
        ({"width": 0}, "width 0: expected a whole number of pixels, 1 or more"),
        ({"width": 60.5}, "width 60.5: expected a whole number"),
        ({"file_name": 3}, "file_name 3: expected text"),
        ({"id": [1]}, r"id \[1\]: expected a number or text"),
    ],
)
def test_images_with_values_of_another_kind(write, changes, message):
    with pytest.raises(UserError, match=rf"train2017\.json: number 1 of its images has {message}") as caught:
        CocoSource(write(content([thing(1)]) | {"images": [image(1), image(2, **changes)]}))
    assert "\n" not in str(caught.value)


def test_categories_of_one_name_are_refused(write):
    """They would be one class in tables and charts, and two in the model."""
    path = write(content([thing(1)], categories=((7, "cat"), (3, "dog"), (9, "cat"))))
    with pytest.raises(UserError, match=r"^categories .*train2017\.json .*\(7 cat, 9 cat\)"):
        CocoSource(path)


def test_categories_may_have_texts_for_ids(write):
    categories = (("b", "cat"), (3, "dog"), ("a", "bird"))
    labels = content([thing(1, category="a"), thing(2, category=3)], categories=categories)
    source = CocoSource(write(labels, labels))
    assert source.classes == ["dog", "bird", "cat"]
    assert source.split("val")[0][1].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "shape",
    [
        {"size": [HEIGHT, WIDTH], "counts": "zz"},  # fewer pixels than the image has
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": "P"},  # ends within a number
        {"size": [HEIGHT, WIDTH], "counts": [3000, -600]},
        {"size": [HEIGHT, WIDTH], "counts": ["2400"]},
        {"size": 5, "counts": [2400]},
        {"size": [HEIGHT, WIDTH]},
    ],
)
def test_run_lengths_that_cannot_be_drawn_are_found_before_training(write, shape):
    source = CocoSource(write(content([thing(1), thing(5, 2, segmentation=shape)])))
    with pytest.raises(UserError, match=r"annotations .* can be drawn \(annotation 5 of image 2\): expected polyg"):
        source.check("train")


def test_compressed_run_lengths_of_another_size_are_found(write):
    tools = pytest.importorskip("pycocotools.mask")
    packed = tools.encode(np.ones((HEIGHT, WIDTH - 1), np.uint8, order="F"))["counts"].decode()
    right = tools.encode(np.ones((HEIGHT, WIDTH), np.uint8, order="F"))["counts"].decode()
    things = [thing(n, segmentation={"size": [HEIGHT, WIDTH], "counts": c}) for n, c in ((4, right), (5, packed))]
    with pytest.raises(UserError, match=r"^annotations .* can be drawn \(annotation 5 of image 1\)"):
        CocoSource(write(content(things))).check("train")


def test_the_training_file_is_let_go_where_nothing_trains(write):
    source = CocoSource(write(content([thing(1)])))
    source.check("val")
    assert not source._parsed
    source.check("train")  # read again where it is wanted after all
    assert not source._parsed
    assert len(source.split("train")) == 2


@pytest.mark.parametrize(
    "images, message",
    [([image(1), image(1)], r"image ids in .* more than once \(1\)"), ([image("a")], r"ids in .* not whole .*'a'")],
)
def test_ids_that_name_no_one_image(write, images, message):
    labels = content([thing(1, picture=images[0]["id"])]) | {"images": images}
    with pytest.raises(UserError, match=message):
        CocoSource(write(labels)).check("train")


def test_folders_and_files_that_are_not_there(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        CocoSource(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has 0 files instances_train\*\.json, expected one: give data.train, its"):
        CocoSource(tmp_path)
    root = write(content([thing(1)]))
    (root / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(UserError, match=r"has 2 files instances_train\*\.json"):
        CocoSource(root)
    (root / "annotations/instances_train2014.json").unlink()
    (root / "val2017").rename(root / "other")
    with pytest.raises(FileNotFoundError, match=r"neither .*val2017 nor .*images/val2017 is a folder"):
        CocoSource(root)
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        CocoSource(root, val=("annotations/instances_val2017.json", "nothing"))
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        load_json(root / "none.json", [])


def test_the_package_that_draws_masks_is_named(write, monkeypatch):
    root = write(content([thing(1)]))
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    with pytest.raises(ImportError, match=r"faster-coco-eval.*longvision\[dense\]"):
        CocoSource(root)
    CocoSource(write(content([thing(1, segmentation=[])])))  # boxes alone need it not


def test_a_polygon_covers_its_pixels():
    mask_HW = np.asarray(ObjectMasks([SQUARE], (HEIGHT, WIDTH)))[0]
    assert mask_HW[10:20, 10:20].all()
    assert mask_HW.sum() == 100


def test_polygons_of_one_object_are_joined_and_lines_skipped():
    two = [[0, 0, 9, 9], *SQUARE, [30, 10, 40, 10, 40, 20, 30, 20]]
    mask_HW = np.asarray(ObjectMasks([two], (HEIGHT, WIDTH)))[0]
    assert mask_HW[10:20, 10:20].all() and mask_HW[10:20, 30:40].all()
    assert mask_HW.sum() == 200


def test_run_lengths_go_down_the_columns():
    counts = [HEIGHT + 5, 3, HEIGHT * (WIDTH - 1) - 8]
    mask_HW = np.asarray(ObjectMasks([{"size": [HEIGHT, WIDTH], "counts": counts}], (HEIGHT, WIDTH)))[0]
    assert mask_HW[5:8, 1].all()
    assert mask_HW.sum() == 3


@pytest.mark.parametrize(
    "shape, empty",
    [
        (SQUARE, False),
        ([[1, 2, 3, 4]], True),
        ({"size": [2, 3], "counts": [6]}, True),
        ({"size": [2, 3], "counts": [5, 1]}, False),
        ({"size": [2, 3], "counts": "abc"}, False),
    ],
)
def test_what_covers_nothing(shape, empty):
    assert is_empty(shape) is empty


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_every_form_of_mask_equals_pycocotools():
    theirs = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    mask_HW = np.asfortranarray((random.random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8))
    packed = theirs.encode(mask_HW)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask_HW.ravel("F"), [2]])))  # runs begin with zeros
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    polygons = [random.uniform(0, [WIDTH, HEIGHT], (5, 2)).ravel().tolist() for _ in range(2)]
    shapes = [
        {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": counts},
        polygons,
    ]
    drawn = theirs.decode(theirs.merge(theirs.frPyObjects(polygons, HEIGHT, WIDTH)))
    ours_NHW = np.asarray(ObjectMasks(shapes, (HEIGHT, WIDTH)))
    assert np.array_equal(ours_NHW, np.stack([mask_HW, mask_HW, drawn]))


@pytest.mark.shared
def test_coco_itself(shared):
    source = CocoSource(shared / "data" / "coco")
    assert (len(source.classes), source.classes[0], source.classes[-1]) == (80, "person", "toothbrush")
    for split, images, objects, crowds in (("train", 178, 1409, 15), ("val", 50, 382, 5)):
        source.check(split)
        records = source.split(split).items
        assert len(records) == images
        assert sum(len(record.boxes) for record in records) == objects
        assert sum(sum(record.crowd) for record in records) == crowds
        assert any(not record.boxes for record in records)


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
def test_coco_itself_equals_pycocotools(shared):
    tools = pytest.importorskip("pycocotools.coco")
    theirs = tools.COCO(shared / "data" / "coco" / "annotations" / "instances_val2017.json")
    pictures = CocoSource(shared / "data" / "coco").split("val")
    for index in range(len(pictures)):
        _, target = pictures[index]
        found = theirs.loadAnns(theirs.getAnnIds(target.image_id))
        assert target.iscrowd.tolist() == [bool(one["iscrowd"]) for one in found]
        for mask_HW, box, one in zip(target.masks.drawn(), target.boxes.tolist(), found, strict=True):
            assert np.array_equal(mask_HW.numpy(), theirs.annToMask(one))
            x, y, width, height = one["bbox"]
            assert box == pytest.approx([x, y, x + width, y + height], abs=1e-3)
