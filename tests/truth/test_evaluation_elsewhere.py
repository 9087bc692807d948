"""`validate RUN --data.path NEW` takes all of NEW, with the run's classes in the run's order, whatever NEW lacks."""

import json

import numpy as np
import pytest
from PIL import Image

from longvision.data.config import CocoData, FolderData, MaskFolderData, ParquetData, VocData
from longvision.data.sources.base import Trained
from longvision.engine.run_data import choose_split
from longvision.errors import UserError

CLASSES = ["zebra", "cat", "dog"]  # not in alphabetical order


def save(path, value=0, mode="RGB", size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def chosen(config, asked=None, trained=None):
    """-> the split, and the class numbers of all images."""
    source, split = choose_split(config.evaluation_source(trained or Trained(CLASSES)), asked)
    group = "test" if split == "test" else "val"
    source.check(group)
    images = source.split(group)
    return split, [images[row][1] for row in range(len(images))]


FOLDERS = [
    pytest.param(["cat/0", "dog/0", "dog/1"], None, [1, 2, 2], id="class-folders-alone"),
    pytest.param(["dog/0"], None, [2], id="one-class"),
    pytest.param(["test/cat/0", "test/zebra/0"], "test", [1, 0], id="test-alone"),
    pytest.param(["Testing/cat/0"], "test", [1], id="test-alone-however-spelled"),
    pytest.param(["val/dog/0"], "val", [2], id="val-alone"),
    pytest.param(["train/dog/0"], None, [2], id="train-alone"),
    pytest.param(["train/cat/0", "val/dog/0", "test/cat/1"], "val", [2], id="all-splits"),
    pytest.param(["train/cat/0", "test/dog/0"], "test", [2], id="train-and-test"),
]


@pytest.mark.parametrize("files, split, labels", FOLDERS)
def test_folders(tmp_path, files, split, labels):
    for file in files:
        save(tmp_path / f"{file}.png")
    assert chosen(FolderData(str(tmp_path))) == (split, labels)


def test_a_class_that_is_called_as_a_split(tmp_path):
    save(tmp_path / "test/0.png")
    save(tmp_path / "control/0.png")
    assert chosen(FolderData(str(tmp_path)), trained=Trained(["test", "control"])) == (None, [1, 0])


def test_what_was_asked_for_must_be_there(tmp_path):
    save(tmp_path / "test/cat/0.png")
    assert chosen(FolderData(str(tmp_path)), "test") == ("test", [1])
    with pytest.raises(UserError, match="has no validation images"):
        chosen(FolderData(str(tmp_path)), "val")


@pytest.mark.parametrize("place", ["bird", "test/bird"])
def test_unknown_classes_of_folders(tmp_path, place):
    save(tmp_path / place / "0.png")
    with pytest.raises(UserError, match=r"bird.*zebra, cat, dog"):
        chosen(FolderData(str(tmp_path)))


def write_parquet(path, labels, names=None):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    table = pa.table({"image": [buffer.getvalue()] * len(labels), "label": labels})
    if names:
        info = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    "name, labels, names, split, expected",
    [
        pytest.param("test.parquet", ["dog", "cat"], None, "test", [2, 1], id="names"),
        pytest.param("new.parquet", ["dog"], None, None, [2], id="a-file-of-no-split"),
        pytest.param("test-00000-of-00001.parquet", [0, 1], ["dog", "zebra"], "test", [2, 0], id="other-numbers"),
        pytest.param("val.parquet", [0, 0], ["cat", "bird"], "val", [1, 1], id="a-name-that-is-not-used"),
        pytest.param("test.parquet", [2, 0], None, "test", [2, 0], id="numbers-without-names"),
    ],
)
def test_parquet(tmp_path, name, labels, names, split, expected):
    write_parquet(tmp_path / name, labels, names)
    assert chosen(ParquetData(str(tmp_path))) == (split, expected)


@pytest.mark.parametrize("labels, names", [(["bird"], None), ([1], ["cat", "bird"])])
def test_unknown_classes_of_parquet(tmp_path, labels, names):
    write_parquet(tmp_path / "test.parquet", labels, names)
    with pytest.raises(UserError, match="bird"):
        chosen(ParquetData(str(tmp_path)))


@pytest.mark.parametrize(
    "images, masks, split",
    [
        ("test/images", "test/masks", "test"),
        ("images", "masks", None),
        ("images/val", "masks/val", "val"),
    ],
)
def test_masks(tmp_path, images, masks, split):
    """A mask of a single value, which alone would make no class."""
    save(tmp_path / images / "a.png")
    save(tmp_path / masks / "a.png", 2, "L")
    found, (mask_HW,) = chosen(MaskFolderData(str(tmp_path)))
    assert found == split and np.unique(mask_HW).tolist() == [2]


def test_masks_of_0_and_255_are_read_as_the_run_read_its_own(tmp_path):
    save(tmp_path / "images/a.png")
    save(tmp_path / "masks/a.png", 255, "L")
    trained = Trained(["class 0", "class 1"], binary=True)
    _, (mask_HW,) = chosen(MaskFolderData(str(tmp_path)), trained=trained)
    assert np.unique(mask_HW).tolist() == [1]


@pytest.mark.parametrize("values", [(0, 255), (255, 255)])
def test_black_and_white_under_numbered_classes_is_asked_about(tmp_path, values):
    """White was left out of the measurement without a word."""
    for name, value in zip("ab", values, strict=True):
        save(tmp_path / f"images/{name}.png")
        save(tmp_path / f"masks/{name}.png", value, "L")
    with pytest.raises(UserError, match=r"0 and 255 alone.*0 to 2.*data\.ignore 255"):
        chosen(MaskFolderData(str(tmp_path)))
    _, masks = chosen(MaskFolderData(str(tmp_path), ignore=255))
    assert [np.unique(mask).tolist() for mask in masks] == [[value] for value in values]


def test_a_value_that_no_class_of_the_run_has(tmp_path):
    save(tmp_path / "images/a.png")
    save(tmp_path / "masks/a.png", 7, "L")
    with pytest.raises(UserError, match="7"):
        chosen(MaskFolderData(str(tmp_path)))


def write_coco(root, split, categories, used):
    save(root / split / "a.png")
    (root / "annotations").mkdir(exist_ok=True)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": category, "bbox": [1, 1, 3, 3], "iscrowd": 0, "area": 9}
            for n, category in enumerate(used, 1)
        ],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("split", ["val", "test", "train"])
def test_coco(tmp_path, split):
    """By name, whatever ids the file has; a category that no annotation has may be any."""
    write_coco(tmp_path, split, {7: "dog", 9: "cat", 11: "bird"}, [7, 9])
    found, (target,) = chosen(CocoData(str(tmp_path)))
    assert found == (None if split == "train" else split)
    assert target.labels.tolist() == [2, 1] and target.masks is None


def test_unknown_classes_of_coco(tmp_path):
    write_coco(tmp_path, "val", {7: "dog", 11: "bird"}, [7, 11])
    with pytest.raises(UserError, match=r"bird.*zebra, cat, dog"):
        chosen(CocoData(str(tmp_path)))


def write_voc(root, name, cls, *lists):
    save(root / "JPEGImages" / f"{name}.jpg")
    (root / "Annotations").mkdir(exist_ok=True)
    box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
    size = "<size><width>8</width><height>6</height><depth>3</depth></size>"
    text = f"<annotation>{size}<object><name>{cls}</name>{box}</object></annotation>"
    (root / "Annotations" / f"{name}.xml").write_text(text)
    for each in lists:
        file = root / "ImageSets/Main" / f"{each}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{file.read_text() if file.exists() else ''}{name}\n")


@pytest.mark.parametrize(
    "lists, split", [(("val",), "val"), (("test",), "test"), ((), None)], ids=["val", "test", "without-lists"]
)
def test_voc(tmp_path, lists, split):
    write_voc(tmp_path, "a", "dog", *lists)
    found, (target,) = chosen(VocData(str(tmp_path)))
    assert found == split and target.labels.tolist() == [2]


def test_unknown_classes_of_voc(tmp_path):
    write_voc(tmp_path, "a", "bird", "val")
    with pytest.raises(UserError, match=r"bird.*zebra, cat, dog"):
        chosen(VocData(str(tmp_path)))
