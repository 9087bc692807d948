"""Splits in names of files: Parquet, COCO's JSON files with their folders of images, VOC's lists."""

import pytest

from longvision.data.leftovers import unlisted
from longvision.data.sources.coco_layout import find_files as coco_files
from longvision.data.sources.shard_layout import find_files as parquet_files
from longvision.data.sources.voc_files import find_lists
from longvision.errors import UserError
from support.trees import plant

SHARDS = "train-00000-of-00002-0123456789abcdef.parquet", "train-00001-of-00002-fedcba9876543210.parquet"
# files -> those of each split, and words that are told
PARQUET = {
    "datasets' shards": (SHARDS, {"train": [*SHARDS]}, []),
    "Train, Validation, TEST": (
        ["Train-0.parquet", "Validation-0.PARQUET", "TEST.parquet"],
        {"train": ["Train-0.parquet"], "val": ["Validation-0.PARQUET"], "test": ["TEST.parquet"]},
        [],
    ),
    "dev and holdout": (
        ["train.parquet", "dev.parquet", "holdout.parquet"],
        {"train": ["train.parquet"], "val": ["dev.parquet"], "test": ["holdout.parquet"]},
        ["holdout"],
    ),
    "a folder a split": (
        ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
        {"train": ["train/0000.parquet", "train/0001.parquet"], "test": ["test/0000.parquet"]},
        [],
    ),
    "in data": (["data/training.parquet"], {"train": ["data/training.parquet"]}, []),
    "with the set's name": (
        ["mnist-train.parquet", "mnist-test.parquet"],
        {"train": ["mnist-train.parquet"], "test": ["mnist-test.parquet"]},
        [],
    ),
    "a single file without a split": (["data.parquet", "a.csv"], {"train": ["data.parquet"]}, ["no split", "a.csv"]),
    "shards without a split": (
        ["data/all-00000-of-00002.parquet", "data/all-00001-of-00002.parquet"],
        {"train": ["data/all-00000-of-00002.parquet", "data/all-00001-of-00002.parquet"]},
        ["a tenth"],
    ),
    "what is not used": (
        ["train.parquet", "train-extra.parquet", "other.parquet", "raw/a.png"],
        {"train": ["train.parquet"]},
        ["train-extra.parquet", "other.parquet", "raw (1 image)"],
    ),
}


@pytest.mark.parametrize(("files", "expected", "told"), PARQUET.values(), ids=PARQUET)
def test_parquet(tmp_path, files, expected, told):
    notes = []
    found = parquet_files(plant(tmp_path, *files), notes)
    assert {split: [str(file.relative_to(tmp_path)) for file in files] for split, files in found.items()} == expected
    assert all(words in "\n".join(notes) for words in told) and bool(notes) == bool(told), notes


@pytest.mark.parametrize("names, said", [
    (["train-00000-of-00003", "train-00002-of-00003"], r"1 shard .*train\* is missing \(number 1 of 0 to 2\)"),
    (["train-00001-of-00003", "train-00002-of-00003"], "number 0 of 0 to 2"),
    (["train-1-of-3", "train-3-of-3"], "number 2 of 1 to 3"),
    (["train-00000-of-00002-0123456789", "train-00000-of-00002-fedcba9876", "train-00001-of-00002-0123456789"],
     r"same number \(train-00000-of-00002-0123456789\.parquet, train-00000-of-00002-fedcba9876\.parquet\)"),
    (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], "more than one set"),
    (["train-00000-of-00001", "train"], r"more than one set \(train-00000-of-00001\.parquet, train\.parquet\)"),
    (["train-0-of-2", "train-5-of-2"], r"beyond the last of 2 \(train-5-of-2\.parquet\)"),
    (["train", "test-00000-of-00002"], "number 1 of 0 to 1"),
    (["train/0000-of-0002"], "number 1 of 0 to 1"),
])  # fmt: skip
@pytest.mark.parametrize("any_split", [False, True])
def test_shards_of_parquet_that_are_missing_or_overlap(tmp_path, names, said, any_split):
    root = plant(tmp_path, *(f"{name}.parquet" for name in names))
    with pytest.raises(UserError, match=said):
        parquet_files(root, [], any_split)


@pytest.mark.parametrize("names", [["train-1-of-2", "train-2-of-2"], ["train-2019", "train-2021"],
                                   ["train/a/0-of-1", "train/b/0-of-1"]], ids="-".join)  # fmt: skip
def test_shards_of_parquet_that_are_complete(tmp_path, names):
    assert len(parquet_files(plant(tmp_path, *(f"{name}.parquet" for name in names)), [])["train"]) == 2


def test_two_spellings_of_one_split_in_parquet(tmp_path):
    with pytest.raises(UserError, match="train and training"):
        parquet_files(plant(tmp_path, "train.parquet", "training.parquet"), [])


def test_several_parquet_files_without_a_split(tmp_path):
    with pytest.raises(UserError, match=r"no train\*\.parquet"):
        parquet_files(plant(tmp_path, "part_a.parquet", "part_b.parquet"), [])


# files -> "JSON: folder of images" of each split
COCO = {
    "COCO's own": (
        [
            "annotations/instances_train2017.json",
            "annotations/instances_val2017.json",
            "annotations/captions_val2017.json",
            "annotations/person_keypoints_val2017.json",
            "annotations/image_info_test-dev2017.json",
            "train2017/1",
            "val2017/1",
            "annotations/panoptic_val2017.json",
            "test2017/1",
        ],
        {
            "train": "annotations/instances_train2017.json: train2017",
            "val": "annotations/instances_val2017.json: val2017",
        },
    ),
    "train.json with images": (
        ["annotations/Train.json", "annotations/Valid.json", "annotations/TEST.json", "images/5"],
        {
            "train": "annotations/Train.json: images",
            "val": "annotations/Valid.json: images",
            "test": "annotations/TEST.json: images",
        },
    ),
    "a split's folder holds both (Roboflow)": (
        ["train/_annotations.coco.json", "train/2", "valid/_annotations.coco.json", "valid/1"],
        {"train": "train/_annotations.coco.json: train", "val": "valid/_annotations.coco.json: valid"},
    ),
    "folders of images spelled otherwise": (
        ["annotations/training.json", "annotations/validation.json", "images/train/1", "images/Val/1"],
        {
            "train": "annotations/training.json: images/train",
            "val": "annotations/validation.json: images/Val",
        },
    ),
}


@pytest.mark.parametrize(("files", "expected"), COCO.values(), ids=COCO)
def test_coco(tmp_path, files, expected):
    found = coco_files(plant(tmp_path, *files), dict.fromkeys(("train", "val", "test")), [])
    assert {
        split: f"{file.relative_to(tmp_path)}: {folder.relative_to(tmp_path)}"
        for split, (file, folder) in found.items()
    } == expected


def test_what_coco_does_not_use(tmp_path):
    files = "annotations/instances_train.json annotations/instances_val.json train/2 val/2 test2017/3 val.zip"
    notes = []
    coco_files(plant(tmp_path, *files.split()), dict.fromkeys(("train", "val", "test")), notes)
    (note,) = notes
    assert "test2017 (3 images)" in note and "val.zip" in note


def test_images_that_no_label_file_lists(tmp_path):
    plant(tmp_path, "train/3", "train/deep/1", "train/notes.txt")
    (line,) = unlisted(
        tmp_path / "train", [f"{tmp_path}/train/./0.png", f"{tmp_path}/train/1.png"], tmp_path / "x.json"
    )
    assert line.startswith("2 images") and "(2.png, deep/0.png)" in line


def test_two_json_files_for_one_split(tmp_path):
    plant(tmp_path, "annotations/train.json", "annotations/instances_train.json", "annotations/val.json", "images/3")
    with pytest.raises(UserError, match="has 2 files"):
        coco_files(tmp_path, dict.fromkeys(("train", "val", "test")), [])


# lists -> which is which
VOC = {
    "VOC's own": (["train", "val", "trainval", "aeroplane_train", "aeroplane_val"], {"train": "train", "val": "val"}),
    "Training and Valid": (["Training", "Valid"], {"train": "Training", "val": "Valid"}),
    "trainval and test": (["trainval", "test"], {"train": "trainval", "test": "test"}),
    "years": (["train2012", "val2012"], {"train": "train2012", "val": "val2012"}),
}


@pytest.mark.parametrize(("names", "expected"), VOC.values(), ids=VOC)
def test_voc(tmp_path, names, expected):
    assert find_lists(plant(tmp_path, *(f"{name}.txt" for name in names)), []) == expected
