import pickle
import warnings

import pytest
from PIL import Image

from longvision.data.sources.folder import FolderSource
from longvision.errors import MissingFileError, UserError


def fill(root, **counts):
    """A folder of small images per class; each shade is its own."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(root / name / f"{number:03}.png")
    return root


def names(split):
    return {path for path, _ in split.items}


def test_splits_in_folders(tmp_path):
    fill(tmp_path / "train", cat=3, dog=4)
    fill(tmp_path / "val", dog=2)
    fill(tmp_path / "test", cat=1, dog=1)
    source = FolderSource(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.has_test
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [7, 2, 2]
    assert [label for _, label in source.split("val")] == [1, 1]
    image, label = source.split("train")[4]
    assert (image.mode, image.getpixel((0, 0)), label) == ("RGB", (1, 1, 1), 1)
    assert FolderSource(tmp_path, channels=1).split("train")[4][0].mode == "L"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_names_of_validation(tmp_path, name):
    fill(tmp_path / "train", cat=3, dog=4)
    fill(tmp_path / name, cat=2)
    assert len(FolderSource(tmp_path).split("val")) == 2


@pytest.mark.parametrize("below", ["", "train"])
def test_a_tenth_validates_where_no_folder_does(tmp_path, below):
    fill(tmp_path / below, cat=20, dog=30, emu=2)
    source = FolderSource(tmp_path, seed=3)
    train, val = source.split("train"), source.split("val")
    assert not source.has_test
    assert [sum(label == number for _, label in val.items) for number in range(3)] == [2, 3, 1]
    assert len(train) == 46
    assert not names(train) & names(val)
    assert names(FolderSource(tmp_path, seed=3).split("val")) == names(val)
    assert names(FolderSource(tmp_path, seed=4).split("val")) != names(val)


def test_the_train_folder_itself(tmp_path):
    fill(tmp_path / "train", cat=10, dog=10)
    assert FolderSource(tmp_path / "train").classes == ["cat", "dog"]


def test_a_class_may_be_called_train(tmp_path):
    assert FolderSource(fill(tmp_path, bus=3, train=3)).classes == ["bus", "train"]


def test_hidden_files_and_deep_ones(tmp_path):
    fill(tmp_path, cat=2, dog=2)
    fill(tmp_path / "cat" / "more", deep=3)
    fill(tmp_path, **{".git": 2})
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("beside the classes")
    source = FolderSource(tmp_path)
    assert source.classes == ["cat", "dog"]
    with warnings.catch_warnings(action="error"):
        assert len(source.split("train")) + len(source.split("val")) == 7


def test_unlabelled_test_images_are_not_used(tmp_path):
    fill(tmp_path / "train", cat=3, dog=4)
    fill(tmp_path, test=5)
    assert not FolderSource(tmp_path).has_test


def test_a_few_files_that_are_no_images_are_named_and_skipped(tmp_path):
    fill(tmp_path, cat=100, dog=99)
    (tmp_path / "cat" / "broken.PNG").write_text("not an image")
    with pytest.warns(UserWarning) as caught:
        source = FolderSource(tmp_path)
        kept = names(source.split("train")) | names(source.split("val"))
    assert len(kept) == 199
    (told,) = [str(warning.message) for warning in caught]
    assert "1 of 200 files" in told and str(tmp_path) in told and "cat/broken.PNG" in told


def test_many_stop(tmp_path):
    fill(tmp_path, cat=50, dog=50)
    for number in range(12):
        (tmp_path / "cat" / f"a{number:02}.png").write_text("not an image")
    with pytest.raises(UserError, match=r"12 of 112 files .*cat/a00\.png, .*cat/a09\.png, …\).* 1 %"):
        FolderSource(tmp_path).split("train")


def test_a_file_that_goes_missing_is_one_image_less(tmp_path):
    split = FolderSource(fill(tmp_path, cat=5, dog=5)).split("train")
    for path in names(split):
        (tmp_path / path).unlink()
    with pytest.raises(MissingFileError):  # which `TransformedSet` takes as one that cannot be read
        split[0]


def test_pickles(tmp_path):
    split = pickle.loads(pickle.dumps(FolderSource(fill(tmp_path, cat=5, dog=5)).split("train")))
    assert split[0][0].size == (4, 4)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give a folder"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: give a folder"):
        FolderSource(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no class folders"):
        FolderSource(tmp_path / "empty")


def test_one_class(tmp_path):
    with pytest.raises(UserError, match="only the class cat: two classes are needed"):
        FolderSource(fill(tmp_path, cat=3))


def test_an_empty_class(tmp_path):
    with pytest.raises(UserError, match="no images of dog, emu"):
        FolderSource(fill(tmp_path, cat=3, dog=0, emu=0))


def test_a_class_of_nothing_readable(tmp_path):
    fill(tmp_path, cat=100, dog=100, emu=0)
    (tmp_path / "emu" / "1.png").write_text("not an image")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no readable images of emu"):
        FolderSource(tmp_path).split("train")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_training_has_not(tmp_path, split):
    fill(tmp_path / "train", cat=3, dog=3)
    fill(tmp_path / split, cat=3, zebra=3)
    with pytest.raises(UserError, match=rf"{split} has the classes zebra, which .*train has not"):
        FolderSource(tmp_path)


def test_validation_without_class_folders(tmp_path):
    fill(tmp_path / "train", cat=3, dog=3)
    fill(tmp_path, val=3)
    with pytest.raises(UserError, match="val has no images in class folders"):
        FolderSource(tmp_path)


def test_splits_without_classes(tmp_path):
    with pytest.raises(UserError, match="no class folders in train: expected one folder of images per class"):
        FolderSource(fill(tmp_path, train=3, val=3))


def test_single_images(tmp_path):
    with pytest.raises(UserError, match="every class has a single image"):
        FolderSource(fill(tmp_path, cat=1, dog=1)).split("train")


def test_imagenette(shared_data):
    source = FolderSource(shared_data / "imagenette224")
    assert len(source.classes) == 10
    assert len(source.split("train")) + len(source.split("val")) == 3925
    assert source.split("val")[0][0].size == (224, 224)
