"""What people call their splits, and sets whose folders could be a split or a class."""

import pytest

from longvision.data.sources.folder import FolderSource
from longvision.data.splits import choose, read_name
from longvision.errors import UserError
from support.trees import plant

NAMES = {
    "train": "train Train TRAIN training Training train_set TrainSet trainset train-set train2017 train_01 trn "
    "train_images train-imgs images_train imagesTr TrainingData train.data training_dataset 训练集 обучение treino",
    "val": "val Val VAL valid Valid validation Validation validating val2017 val_images val-set dev devset development "
    "vali imagesVa 验证集 Validação validación",
    "test": "test Test TESTING testing test-set test_set testset tst test2017 test-dev2017 test_images TestData "
    "imagesTs 测试集 テスト тест",
    "either": "eval evaluation Eval_Set holdout hold-out hold_out HoldOut held-out",
    "trainval": "trainval train_val TrainVal train-valid",
}


@pytest.mark.parametrize(("reading", "name"), [(reading, name) for reading in NAMES for name in NAMES[reading].split()])
def test_names_of_splits(reading, name):
    assert read_name(name).reading == reading
    assert read_name(name).is_split


@pytest.mark.parametrize("name", "cat trains strain latest contest valve valley device TR te images masks none".split())  # noqa: SIM905
def test_other_names(name):
    assert read_name(name).reading is None


@pytest.mark.parametrize("name", ["test_tube", "crash test", "train station", "seg_train", "PublicTest", "train_masks"])
def test_names_that_say_more_than_a_split(name):
    assert read_name(name).reading and not read_name(name).is_split


def test_a_word_of_two_meanings_takes_the_place_that_is_free():
    assert choose(["train", "eval"], "DIR").names == {"train": "train", "val": "eval"}
    assert choose(["train", "val", "holdout"], "DIR").names == {"train": "train", "val": "val", "test": "holdout"}
    assert choose(["train", "val", "test", "eval"], "DIR").left == ["eval"]
    assert "eval" in choose(["train", "eval"], "DIR").notes[0]


# files -> (classes, images that train, that validate, that test), and words that the notes say
READ = {
    "Training and Testing (datasets#4015)": (
        ["Training/cat/20", "Training/dog/20", "Testing/cat/2", "Testing/dog/2"],
        (["cat", "dog"], 36, 4, 4),
        [],
    ),
    "train, Val and Test (datasets#4839)": (
        ["train/cat/3", "train/dog/3", "Val/cat/2", "Val/dog/2", "Test/cat/1", "Test/dog/1"],
        (["cat", "dog"], 6, 4, 2),
        [],
    ),
    "TRAIN, DEV, TEST": (
        ["TRAIN/cat/3", "TRAIN/dog/3", "DEV/cat/2", "TEST/dog/1"],
        (["cat", "dog"], 6, 2, 1),
        [],
    ),
    "train_set beside eval": (
        ["train_set/a/3", "train_set/b/3", "eval/a/2", "eval/b/2"],
        (["a", "b"], 6, 4, None),
        ["eval", "validation"],
    ),
    "unpacked twice (Kaggle's training_set)": (
        ["training_set/training_set/cats/3", "training_set/training_set/dogs/3", "test_set/test_set/cats/20"],
        (["cats", "dogs"], 4, 2, 20),
        [],
    ),
    "seg_train, seg_test, seg_pred (Intel's)": (
        ["seg_train/seg_train/sea/10", "seg_train/seg_train/street/10", "seg_test/seg_test/sea/3", "seg_pred/7"],
        (["sea", "street"], 18, 2, 3),
        ["seg_pred (7 images)"],
    ),
    "a class called train": (["bus/5", "train/5"], (["bus", "train"], 8, 2, None), ["train", "class"]),
    "a class called test inside train": (
        ["train/test/5", "train/control/5", "val/test/1", "val/control/1"],
        (["control", "test"], 10, 2, None),
        [],
    ),
    "a class called test_tube": (["beaker/5", "test_tube/5"], (["beaker", "test_tube"], 8, 2, None), ["test_tube"]),
    "loose class folders beside train": (
        ["train/cat/10", "train/dog/10", "cat/4", "dog/4"],
        (["cat", "dog"], 18, 2, None),
        ["cat (4 images)", "dog (4 images)"],
    ),
    "unlabelled test images": (
        ["train/cat/10", "train/dog/10", "test/5"],
        (["cat", "dog"], 18, 2, None),
        ["test has no class folders", "test (5 images)"],
    ),
    "loose images, archives, tables": (
        ["cat/10", "dog/10", "a.png", "b.JPG", "set.zip", "labels.csv", "README.md"],
        (["cat", "dog"], 18, 2, None),
        ["2 images (a.png, b.JPG)", "1 archive (set.zip)", "1 other file (labels.csv)"],
    ),
    "loose images inside a split": (
        ["train/cat/10", "train/dog/10", "train/x.png"],
        (["cat", "dog"], 18, 2, None),
        ["1 image (x.png)"],
    ),
    "folders inside class folders": (
        ["cat/more/deep/5", "cat/5", "dog/10"],
        (["cat", "dog"], 18, 2, None),
        ["5 files", "more/deep"],
    ),
    "folders of the same names inside the classes of train": (
        ["train/cat/2019/5", "train/dog/2019/5", "train/dog/5"],
        (["cat", "dog"], 13, 2, None),
        ["cat", "2019"],
    ),
    "folders of images inside class folders": (
        ["cat/images/10", "dog/images/10"],
        (["cat", "dog"], 18, 2, None),
        ["images"],
    ),
    "files of no image type": (
        ["cat/10", "cat/0.xml", "cat/0.TXT", "dog/10"],
        (["cat", "dog"], 18, 2, None),
        ["2 files of no image type"],
    ),
    "classes that differ by capitals": (["Cat/10", "cat/10"], (["Cat", "cat"], 18, 2, None), ["'Cat' and 'cat'"]),
    "val is a link to train": (
        ["train/cat/5", "train/dog/5", "val -> train"],
        (["cat", "dog"], 10, 10, None),
        ["same folder"],
    ),
    "what systems leave behind": (
        [
            "cat/10",
            "dog/10",
            "cat/Thumbs.db",
            "cat/._0.png",
            "__MACOSX/cat/3",
            "@eaDir/3",
            ".ipynb_checkpoints/3",
            "dog/desktop.ini",
            "dog/.DS_Store",
            "dog/0.png:Zone.Identifier",
            "cat/.ipynb_checkpoints/3",
        ],
        (["cat", "dog"], 18, 2, None),
        [],
    ),
}


@pytest.mark.parametrize(("files", "expected", "told"), READ.values(), ids=READ)
def test_what_a_folder_holds(tmp_path, files, expected, told):
    source = FolderSource(plant(tmp_path, *files))
    counts = [len(source.split(split)) for split in ("train", "val")]
    test = len(source.split("test")) if source.has_test else None
    assert (source.classes, *counts, test) == expected
    notes = "\n".join(source.notes)
    assert [words for words in told if words not in notes] == []
    assert bool(notes) == bool(told), notes


# files -> words of the refusal
REFUSED = {
    "train and Train": (["train/a/3", "train/b/3", "Train/a/3", "Train/b/3"], "train.*Train|Train.*train"),
    "val and valid": (["train/a/3", "train/b/3", "val/a/1", "valid/a/1"], "val and valid"),
    "val and an empty Valid": (["train/a/3", "train/b/3", "val/a/1", "Valid/"], "Valid and val"),
    "train and its copy": (["train/a/3", "train/b/3", "train (1)/a/3"], r"train \(1\)"),
    "no train": (["val/a/3", "val/b/3", "test/a/3"], "no training images"),
    "test beside classes": (["cat/3", "dog/3", "test/3"], "test beside the folders cat, dog"),
    "Testing with classes beside classes": (["cat/3", "dog/3", "Testing/cat/3"], "Testing beside"),
    "holdout beside classes": (["cat/3", "dog/3", "holdout/3"], "holdout beside"),
    "classes above splits (MVTec)": (["bottle/train/3", "bottle/test/3", "cable/train/3", "cable/test/3"], "test"),
    "splits a folder deeper, twice": (["one/train/a/3", "one/val/a/3", "two/train/a/3"], "val"),
    "splits a folder deeper": (["set/train/a/3", "set/val/a/3"], "or give .*set"),
    "train without classes": (["train/3", "test/3"], "no class folders in train"),
    "trainval beside val": (["trainval/a/3", "trainval/b/3", "val/a/1"], "trainval and val"),
    "tr, va, te": (["tr/cat/3", "tr/dog/3", "va/cat/1", "va/dog/1", "te/cat/1", "te/dog/1"], "te, tr, va.*cat, dog"),
    "learn and predict": (["learn/cat/3", "learn/dog/3", "predict/cat/3"], "learn, predict.*cat.*train, val and test"),
    "folds": (["fold0/a/3", "fold0/b/3", "fold1/a/3", "fold1/b/3"], "fold0, fold1"),
    "parts of which one is a class's": (["a/cat/3", "b/cat/3", "c/3"], "a, b.*cat"),
    "a folder deeper": (["a/set/cat/3", "b/set/cat/3"], "a, b.*set"),
    "two parts of train": (["train_1/a/3", "train_1/b/3", "train_2/a/3"], "train_1 and train_2"),
}


@pytest.mark.parametrize(("files", "words"), REFUSED.values(), ids=REFUSED)
def test_what_could_be_a_split_or_a_class_is_refused(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        FolderSource(plant(tmp_path, *files))
