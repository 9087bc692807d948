"""Files of labels that nobody would write: each is read, or refused with a UserError; nothing else is raised.

A few hundred examples, the same in every run; `LONGVISION_FUZZ=100000` in the environment asks for more.
"""

import json
import os
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longvision.data.io.class_files import ClassFile, read_classes
from longvision.data.io.text import decode
from longvision.data.sources.coco import CocoSource
from longvision.data.sources.voc_files import Entry, read_entry, read_list
from longvision.errors import UserError

pytest.importorskip("faster_coco_eval")
EXAMPLES = int(os.environ.get("LONGVISION_FUZZ", "0"))


def examples(count):
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
WORDS = st.sampled_from(
    ["road", "tree", "0", "1", "7", "255", "128 64 128", "128,64,128", "#804080", ":", ",", ";", "\t", " ", "\n", "#",
     "name", "r", "g", "b", "id", "Idx", "color", "label", "::", "-", '"', "__ignore__", "ä", "猫", "\x00", "\x85"]
)  # fmt: skip
KEYS = st.sampled_from(
    ["name", "color", "id", "classes", "names", "title", "ignore", "binary", "categories", "nc", "a"]
)
FLAT = SCALARS | st.lists(SCALARS, max_size=4)  # of two levels: `st.recursive` takes ten times as long
JSON = FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(KEYS, FLAT, max_size=4)
CLASSES = st.lists(st.fixed_dictionaries({"name": SCALARS}, optional={"color": JSON, "id": SCALARS}), max_size=4)


def classes_of(path, content):
    path.write_bytes(content)
    try:
        found = read_classes(path)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error)
        return
    assert isinstance(found, ClassFile)
    assert len(found.classes) == len(set(found.classes)) == len(found.palette) >= 2
    assert len(found.values) in (0, len(found.classes))
    "".join(found.classes).encode()  # no half characters


@examples(100)
@given(st.lists(WORDS, max_size=24))
def test_class_files_of_lines(folder, words):
    classes_of(folder / "classes.txt", "".join(words).encode())


@examples(30)
@given(st.binary(max_size=60))
def test_class_files_of_bytes(folder, content):
    classes_of(folder / "classes.txt", content)
    classes_of(folder / "classes.yaml", content)


@examples(60)
@given(JSON | CLASSES | st.fixed_dictionaries({"classes": CLASSES}, optional={"ignore": JSON, "binary": SCALARS}))
def test_class_files_of_json(folder, content):
    classes_of(folder / "classes.json", json.dumps(content).encode())


@examples(30)
@given(st.binary(max_size=40))
def test_any_bytes_are_text_or_refused(content):
    notes = []
    try:
        text = decode(content, "name", notes)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert "\r" not in text and "\x00" not in text


TAGS = ["object", "name", "bndbox", "xmin", "ymin", "xmax", "ymax", "size", "width", "height", "difficult", "filename"]
TEXTS = st.sampled_from(
    ["", "1", "0", "20", "cat", "nan", "-5", "1e400", "1_0", "１", "yes", "Unspecified", "&amp;", " 3 "]
)
LEAVES = st.builds("<{0}>{1}</{0}>".format, st.sampled_from(TAGS), TEXTS)
XML = st.builds("<{0}>{1}</{0}>".format, st.sampled_from(TAGS), st.lists(LEAVES, max_size=6).map("".join)) | LEAVES
CORNERS = st.tuples(*[TEXTS] * 4).map(lambda t: "".join(f"<{k}>{v}</{k}>" for k, v in zip(TAGS[3:7], t, strict=True)))
OBJECTS = st.builds("<object><name>{}</name>{}<bndbox>{}</bndbox></object>".format, TEXTS, XML, CORNERS)


@examples(80)
@given(st.lists(XML | OBJECTS, max_size=4), st.sampled_from(["annotation", "annotations"]))
def test_xml_files(folder, parts, root):
    (folder / "a.xml").write_text(f"<{root}>{''.join(parts)}</{root}>", encoding="utf-8")
    try:
        entry = read_entry(folder / "a.xml", defaultdict(list))
    except UserError as error:
        assert "\n" not in str(error) and "a.xml" in str(error)
        return
    assert isinstance(entry, Entry) and all(name and len(box) == 4 for name, box, _ in entry.objects)


@examples(60)
@given(
    st.binary(max_size=80) | st.binary(max_size=40).map(lambda b: b'<?xml version="1.0" encoding="' + b + b'"?><a/>')
)
def test_xml_files_of_bytes(folder, content):
    (folder / "a.xml").write_bytes(content)
    with pytest.raises(UserError) as caught:  # none of them is an annotation
        read_entry(folder / "a.xml", defaultdict(list))
    assert "\n" not in str(caught.value)


@examples(40)
@given(st.lists(st.sampled_from(["a", "b", " ", "\n", "1", "-1", ".jpg", "/", "\\", ".", "\r", "\ufeff"]), max_size=12))
def test_lists_of_names(folder, parts):
    (folder / "list.txt").write_bytes("".join(parts).encode())
    try:
        names = read_list(folder / "list.txt", folder, [])
    except UserError:
        return
    assert names and len(names) == len(set(names))


NUMBERS = st.sampled_from([0, 1, 2, -1, 1.0, 0.5, 1e300, float("nan"), float("inf"), True, None, "1", [], {}])
BOXES = st.lists(NUMBERS, min_size=3, max_size=5) | NUMBERS
SHAPES = st.lists(BOXES, max_size=2) | NUMBERS | st.fixed_dictionaries({"size": BOXES, "counts": BOXES})
FULL = {
    "images": {"id": NUMBERS, "file_name": SCALARS, "height": NUMBERS, "width": NUMBERS},
    "annotations": {
        "id": NUMBERS, "image_id": NUMBERS, "category_id": NUMBERS, "bbox": BOXES, "segmentation": SHAPES,
        "iscrowd": NUMBERS,
    },
    "categories": {"id": NUMBERS, "name": SCALARS},
}  # fmt: skip
GOOD = {
    "images": {"id": 1, "file_name": "1.png", "height": 8, "width": 9},
    "annotations": {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]},
    "categories": {"id": 1, "name": "a"},
}


@st.composite
def coco_files(draw):
    """A good file of which some values are others."""
    content = {word: [dict(entry) for _ in range(draw(st.integers(1, 2)))] for word, entry in GOOD.items()}
    for number, one in enumerate(content["images"]):
        one |= {"id": number + 1, "file_name": f"{number + 1}.png"}
    for number, one in enumerate(content["categories"]):
        one |= {"id": number + 1, "name": "ab"[number]}
    for number, one in enumerate(content["annotations"]):
        one["id"] = number
    for _ in range(draw(st.integers(0, 3))):
        word = draw(st.sampled_from(list(FULL)))
        key = draw(st.sampled_from(list(FULL[word])))
        draw(st.sampled_from(content[word]))[key] = draw(FULL[word][key])
    return content


@pytest.mark.filterwarnings("ignore:.*have no segmentation", "ignore:.*have no area")
@examples(80)
@given(coco_files() | JSON)
def test_coco_files(folder, content):
    root = folder / "coco"
    for name in ("annotations", "train", "val"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    try:
        source = CocoSource(root)
        records = list(source.records("train"))
    except UserError as error:
        assert "\n" not in str(error)
        return
    for record in records:
        assert all(0 <= x1 < x2 <= record.width and 0 <= y1 < y2 <= record.height for x1, y1, x2, y2 in record.boxes)
        assert all(0 <= label < len(source.classes) for label in record.labels)
