"""COCO's files as programs write them, and ids and names that come back in what prediction writes."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faster_coco_eval")
from longvision.data.image_ids import write_image_ids
from longvision.data.sources.coco import CocoSource
from longvision.errors import UserError
from longvision.inference.coco import CocoResults
from longvision.inference.description import Description, with_image_ids
from longvision.inference.outputs import ObjectFiles
from longvision.inference.results import ObjectResult
from longvision.types import CocoIds, Detections
from support.outlines import outline

HEIGHT, WIDTH = 40, 60
row = pytest.param


def image(number, **changes):
    return {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH} | changes


def thing(number=1, picture=1, category=7, **changes):
    found = {"id": number, "image_id": picture, "category_id": category, "bbox": [10, 10, 10, 10]}
    found |= changes
    found.setdefault("segmentation", outline(found["bbox"]))
    return {key: value for key, value in found.items() if value != "absent"}


def labels(*things, images=None, categories=((7, "cat"), (0, "dog"))):
    return {
        "images": images or [image(1), image(2)],
        "annotations": list(things) or [thing()],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }


NAMELESS = labels() | {"categories": [{"id": 1, "supercategory": "a"}]}


def made(root, train=None, val=None, files=("1.png", "2.png"), encoding="utf-8"):
    for split, content in (("train", train or labels()), ("val", val or labels())):
        for name in files:
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(path, "png")
        (root / "annotations").mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (root / f"annotations/instances_{split}.json").write_bytes(text.encode(encoding))
    return CocoSource(root)


def read(source, split="train"):
    source.check(split)
    return [target for _, target in (source.split(split)[row] for row in range(len(source.split(split))))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path, encoding):
    source = made(tmp_path, labels(categories=((7, "größe"), (0, "猫"))), encoding=encoding)
    assert source.classes == ["猫", "größe"] and source.notes == []


def test_western_encodings_are_told(tmp_path):
    source = made(tmp_path, labels(categories=((7, "größe"), (0, "dog"))), encoding="latin-1")
    assert source.classes == ["dog", "größe"] and "größe" in source.notes[0]


@pytest.mark.parametrize(
    ("word", "crowd"), [(0, False), (1, True), (True, True), (False, False), (None, False), ("absent", False)]
)
def test_iscrowd(tmp_path, word, crowd):
    assert read(made(tmp_path, labels(thing(iscrowd=word))))[0].iscrowd.tolist() == [crowd]


@pytest.mark.parametrize("number", ["absent", None])
def test_annotations_need_no_ids(tmp_path, number):
    assert len(read(made(tmp_path, labels(thing(number), thing(number, bbox=[0, 0, 5, 5]))))[0]) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        row(labels(thing(1), thing(1)), ["annotation ids", "more than once (1)"], id="annotation ids twice"),
        row(labels(categories=((7, "a"), (7, "b"))), ["category ids", "(7)"], id="category ids twice"),
        row(labels(images=[image(1), image(1)]), ["image ids", "(1)"], id="image ids twice"),
        row(labels(images=[image(1), image(2, file_name="1.png")]), ["file names", "(1.png)"], id="a name twice"),
        row(labels(images=[image(1), image(2, file_name="./1.png")]), ["file names", "(1.png)"], id="./ twice"),
        row(labels(images=[image("1"), image(2)]), ["image ids", "whole numbers", "'1'"], id="ids as text"),
        row(labels(images=[image(1.5), image(2)]), ["image ids", "whole numbers", "1.5"], id="ids of floats"),
        row(labels(images=[image(True), image(2)]), ["number 0 of its images", "id true"], id="truth for an id"),
        row(labels(thing(picture="1")), ["belong to images", "annotation 1 of image 1"], id="image_id as text"),
        row(labels(thing(picture=9)), ["belong to images", "annotation 1 of image 9"], id="image_id unknown"),
        row(labels(thing(category=5)), ["categories that it does not list", "category 5"], id="category unknown"),
        row(labels(thing(category="7")), ["does not list", "category '7'", "as the ids"], id="category_id as text"),
        row(labels(thing([])), ["number 0 of its annotations has id []"], id="a list for an id"),
        row(labels(thing(iscrowd="0")), ["number 0 of its annotations", 'iscrowd "0"'], id="iscrowd as text"),
        row(labels(thing(iscrowd=2)), ["iscrowd 2: expected 0 or 1"], id="iscrowd 2"),
        row(labels(thing(bbox=[10, 10, -5, 5])), ["no area", "image 1: [10, 10, -5, 5]"], id="negative width"),
        row(labels(thing(bbox=[10, 10, 0, 5])), ["no area", "[10, 10, 0, 5]"], id="no width"),
        row(labels(thing(bbox=[50, 10, 20, 5])), ["lie outside", "[50, 10, 20, 5]"], id="outside"),
        row(labels(thing(bbox=[float("nan"), 1, 1, 1])), ["lie outside", "[nan, 1, 1, 1]"], id="NaN"),
        row(labels(thing(bbox=[1, 1, float("inf"), 1])), ["lie outside", "inf"], id="infinite"),
        row(labels(thing(bbox=[])), ["bbox []: expected four numbers"], id="no box"),
        row(labels(thing(bbox=None)), ["bbox null: expected four numbers"], id="null for a box"),
        row(labels(thing(bbox="absent")), ["has no bbox"], id="no key of a box"),
        row(labels(thing(bbox=["1", 2, 3, 4])), ["expected four numbers"], id="text in a box"),
        row(labels(thing(bbox=[True, 2, 3, 4])), ["expected four numbers"], id="truth in a box"),
        row(labels(thing(segmentation=[[1, 2, 3, 4, 5, 6, 7]])), ["can be drawn (annotation 1"], id="odd length"),
        row(labels(thing(segmentation=[[1, 2, float("nan"), 4, 5, 6]])), ["can be drawn"], id="NaN in a polygon"),
        row(labels(thing(segmentation=[[1, 2, 1e300, 4, 5, 6]])), ["can be drawn"], id="a huge corner"),
        row(labels(thing(segmentation=[1, 2, 3, 4, 5, 6])), ["can be drawn"], id="a polygon without its list"),
        row(labels(thing(segmentation=[[30, 30, 40, 30, 40, 39]])), ["outside their boxes", "30 30 40 39"],
            id="a polygon outside its box"),
        row(labels(thing(segmentation=[[10, 10, 20, 20]])), ["cover nothing", "two corners", "annotation 1"],
            id="a polygon of two corners"),
        row(labels(images=[image(1, height=WIDTH, width=HEIGHT), image(2)]), ["1.png", "exchanged"], id="exchanged"),
        row(labels(thing(segmentation="text")), ["can be drawn"], id="text for a polygon"),
        row(NAMELESS, ["number 0 of its categories has no name"], id="supercategory alone"),
        row(labels(categories=((7, " "), (0, "a"))), ["categories", "have no name (id 7)"], id="an empty name"),
        row(labels(categories=((7, "a "), (0, "a"))), ["share their names"], id="names that differ in a blank"),
        row(labels(images=[image(1, width=WIDTH + 1), image(2)]), ["1.png is 60 wide and 40 high, not 61"], id="width"),
        row("[" * 5000, ["is not JSON"], id="nested"),
        row('{"images": [1e999]}', ["number 0 of its images has no id"], id="a number that is too large"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, content, words):
    with pytest.raises(UserError) as caught:
        source = made(tmp_path, content)
        source.check("train")
    said = str(caught.value)
    assert all(word in said for word in ["instances_train.json", *words]) and "\n" not in said


@pytest.mark.parametrize(
    ("names", "files", "told"),
    [
        (["a/1.png", "b/1.png"], ["a/1.png", "b/1.png"], False),
        (["./1.png", "2.png"], ["1.png", "2.png"], False),
        (["a\\1.png", "b\\2.png"], ["a/1.png", "b/2.png"], True),
        (["train/1.png", "train/2.png"], ["1.png", "2.png"], True),
        (["C:\\photos\\1.png", "C:\\photos\\2.png"], ["1.png", "2.png"], True),
        (["/home/me/1.png", "/home/me/2.png"], ["1.png", "2.png"], True),
        (["größe 1.png", "猫.png"], ["größe 1.png", "猫.png"], False),
    ],
)
def test_file_names_with_folders(tmp_path, names, files, told):
    images = [image(number, file_name=name) for number, name in enumerate(names, 1)]
    source = made(tmp_path, labels(images=images), files=files)
    assert len(read(source)) == 2
    assert any("are found" in note for note in source.notes) == told
    assert [entry.file.endswith(name) for entry, name in zip(source.split("train").items, files)] == [True, True]


def test_names_that_become_one_without_their_folders(tmp_path):
    images = [image(1, file_name="x/1.png"), image(2, file_name="y/1.png")]
    with pytest.raises(UserError, match="several names"):
        made(tmp_path, labels(images=images)).check("train")


def test_ids_of_a_set(tmp_path):
    """rf-detr#85: prediction numbered categories its own way under the same format."""
    images = [image(501, file_name="1.png"), image(502, file_name="2.png")]
    source = made(tmp_path, labels(thing(picture=501), images=images), labels())
    for split in ("train", "val"):
        read(source, split)
    ids = {"train/1.png": 501, "train/2.png": 502, "val/1.png": 1, "val/2.png": 2}
    assert (source.classes, source.coco_ids) == (["dog", "cat"], CocoIds([0, 7], ids))


IDS = CocoIds([0, 7], {"train/1.png": 501, "val/1.png": 1, "val/deep/2.png": 9, "train/3.png": 30})
PHOTO = Image.new("RGB", (9, 8))
FOUND = Detections(np.array([[1, 2, 3, 5]], np.float32), np.array([0.5], np.float32), np.array([1]))
NOTHING = FOUND.select(np.array([], int))


@pytest.mark.parametrize(
    ("path", "number", "name"),
    [
        row("set/val/1.png", 1, "1.png", id="folder and name"),
        row("/data/set/train/1.png", 501, "1.png", id="another folder"),
        row("val/deep/2.png", 9, "deep/2.png", id="a name with a folder"),
        row("elsewhere/3.png", 30, "3.png", id="a name that one folder has"),
        row("elsewhere/1.png", 502, "elsewhere/1.png", id="a name that two folders have"),
        row("2.png", 502, "2.png", id="a name without its folder"),
        row("set/val/new.png", 502, "set/val/new.png", id="unknown"),
    ],
)
def test_ids_that_come_back(path, number, name):
    made = CocoResults(["dog", "cat"], IDS)
    made.add(path, (8, 9), FOUND)
    said = made.as_dict()
    assert said["categories"] == [{"id": 0, "name": "dog"}, {"id": 7, "name": "cat"}]
    assert said["images"] == [{"id": number, "file_name": name, "width": 9, "height": 8}]
    assert [(one["image_id"], one["category_id"]) for one in said["annotations"]] == [(number, 7)]
    assert bool(made.notes()) == (number == 502 or path == "elsewhere/3.png")


def test_an_id_is_given_once():
    made = CocoResults(["dog", "cat"], IDS)
    for _ in range(2):
        made.add("val/1.png", (8, 9), FOUND)
    assert [one["id"] for one in made.as_dict()["images"]] == [1, 502]
    assert "from 502 to 502" in made.notes()[0]


def test_an_id_that_two_files_give_is_given_once():
    """Each JSON file numbers its own images."""
    made = CocoResults(["dog"], CocoIds([1], {"train/a.jpg": 1, "val/b.jpg": 1, "val/c.jpg": 2}))
    for path in ("train/a.jpg", "val/b.jpg", "val/c.jpg"):
        made.add(path, (8, 9), NOTHING)
    said = made.as_dict()["images"]
    assert [(one["id"], one["file_name"]) for one in said] == [(1, "a.jpg"), (3, "val/b.jpg"), (2, "c.jpg")]
    (note,) = made.notes()
    assert "1 image " in note and "val/b.jpg" in note and "from 3 to 3" in note


def test_images_known_by_the_name_alone_are_told():
    """A stranger's 000001.jpg is not the training image of that name."""
    ids = CocoIds([1], {f"train/{n}.jpg": n for n in range(1, 13)})
    made = CocoResults(["dog"], ids)
    for n in range(1, 13):
        made.add(f"holiday/{n}.jpg", (8, 9), NOTHING)
    (note,) = made.notes()
    assert "12 images" in note and "holiday/1.jpg, holiday/2.jpg" in note and "holiday/12.jpg" not in note


def test_names_are_indexed_once(monkeypatch):
    """Not for each image: a set may have millions."""
    ids = CocoIds([1], {f"train/{n}.jpg": n for n in range(1, 9)})
    results = [ObjectResult(f"train/{n}.jpg", PHOTO, ["dog"], [(0, 0, 0)], NOTHING, ids) for n in range(1, 9)]
    indexed = []
    find = CocoIds.by_name.func
    monkeypatch.setattr(CocoIds.by_name, "func", lambda self: indexed.append(1) or find(self))
    assert [result.to_dict()["images"][0]["id"] for result in results] == list(range(1, 9))
    strangers = [ObjectResult(f"new/{n}.jpg", PHOTO, ["dog"], [(0, 0, 0)], NOTHING, ids) for n in range(1, 9)]
    for result in strangers:
        with pytest.warns(UserWarning, match="by the name alone"):
            result.to_dict()
    assert len(indexed) == 1


def test_a_set_of_another_kind_numbers_from_1():
    made = CocoResults(["dog", "cat"])
    made.add("val/1.png", (8, 9), FOUND)
    assert (made.as_dict()["images"][0]["id"], made.as_dict()["annotations"][0]["category_id"]) == (1, 2)
    assert made.notes() == []


def test_ids_in_a_description():
    metadata = {"architecture": "vim", "classes": ["a"], "preprocess": {"size": [8, 8], "channels": 3}}
    ids = {"categories": [7], "images": {"val/1.png": 3}}  # as earlier versions wrote it
    assert Description.from_metadata(metadata | {"coco_ids": ids}, "m").coco_ids == CocoIds([7], {"val/1.png": 3})
    ids = {"categories": [7]}
    assert Description.from_metadata(metadata | {"coco_ids": ids}, "m").coco_ids == CocoIds([7])
    assert Description.from_metadata(metadata, "m").coco_ids is None
    with pytest.raises(UserError, match="coco_ids"):
        Description.from_metadata(metadata | {"coco_ids": {"images": {}}}, "m")


@pytest.fixture
def described():
    metadata = {"architecture": "vim", "classes": ["a"], "preprocess": {"size": [8, 8], "channels": 3}}
    return Description.from_metadata(metadata | {"coco_ids": {"categories": [7]}}, "m")


def test_a_runs_folder_has_the_ids_of_images(tmp_path, described):
    ids = {"train/1.png": 501, "val/gr\udcf6\udcdfe.png": 2}
    write_image_ids(tmp_path, {})
    write_image_ids(tmp_path, ids)
    assert with_image_ids(described, tmp_path).coco_ids == CocoIds([7], ids)
    assert with_image_ids(described, tmp_path / "model.safetensors").coco_ids == CocoIds([7])


def test_a_run_without_ids_of_images_numbers_them_and_says_so(tmp_path, described):
    found = ObjectFiles(["a"], None)
    ids = with_image_ids(described, tmp_path).coco_ids
    found.add(ObjectResult("train/1.png", PHOTO, ["a"], [(0, 0, 0)], NOTHING, ids))
    said = found.as_json()
    assert (said["images"][0]["id"], said["categories"][0]["id"]) == (1, 7)
    assert "coco-ids.json" in " ".join(found.remarks())


@pytest.mark.parametrize("content", [b"[1]", b'{"a": "b"}', b"{", b"\xff"])
def test_damaged_ids_of_images(tmp_path, described, content):
    (tmp_path / "coco-ids.json").write_bytes(content)
    with pytest.raises(UserError, match=r"coco-ids\.json"):
        with_image_ids(described, tmp_path)


def test_boxes_as_shares_of_the_image_are_refused(tmp_path):
    """As YOLO has them: each became half a pixel in the corner."""
    source = made(tmp_path, labels(thing(bbox=[0.1, 0.1, 0.5, 0.9])))
    with pytest.raises(UserError, match="pixels") as caught:
        source.check("train")
    assert "beyond 1" in str(caught.value)


@pytest.mark.parametrize("box", [[10, 10, 10, 10], [0, 0, 59, 39]])
def test_polygons_as_shares_of_the_image_are_refused(tmp_path, box):
    shares = [[0.2, 0.2, 0.4, 0.2, 0.4, 0.6]]
    source = made(tmp_path, labels(thing(bbox=box, segmentation=shares)))
    with pytest.raises(UserError, match=r"outside their boxes|polygons .* shares") as caught:
        source.check("train")
    assert "pixels" in str(caught.value)


def test_a_polygon_of_another_size_than_its_box_is_told(tmp_path):
    source = made(tmp_path, labels(thing(bbox=[10, 10, 30, 20], segmentation=outline([10, 10, 10, 10])), thing(2)))
    source.check("train")
    assert any("annotation of" in note and "annotation 1 of image 1" in note for note in source.notes)


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        ("a.JPG", ["a.jpg", "2.png"], "a.jpg"),
        ("A.jpg", ["a.JPG", "2.png"], "a.JPG"),
        ("a.JPG", ["a.jpg", "A.jpg", "2.png"], None),
        ("a.JPG", ["a.jpg", "a.JPG", "2.png"], "a.JPG"),
    ],
)
def test_file_names_in_other_capitals(tmp_path, name, files, found):
    source = made(tmp_path, labels(images=[image(1, file_name=name), image(2)]), labels(images=[image(2)]), files)
    if found is None:
        with pytest.raises(UserError, match=rf"do not exist.*{name}"):
            source.check("train")
        return
    source.check("train")
    assert source.split("train").items[0].file.endswith(f"/{found}")
    assert any(name in note and "capitals" in note for note in source.notes) == (found != name)


def test_categories_without_objects_and_names_that_look_alike_are_told(tmp_path):
    source = made(tmp_path, labels(categories=((7, "cat"), (0, "dog"), (8, "Dog"))))
    source.check("train")
    notes = "\n".join(source.notes)
    assert "no object of 2 categories (dog, Dog)" in notes and "'dog' and 'Dog'" in notes


def test_a_box_of_one_pixel_in_the_corner_is_none(tmp_path):
    made(tmp_path, labels(thing(bbox=[0, 0, 1, 1]))).check("train")
