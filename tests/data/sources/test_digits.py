import numpy as np
import pytest

from longvision.data.sources.digits import DigitsSource, load_digits_split

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def scans(split):
    return np.stack([np.asarray(image) for image, _ in (split[index] for index in range(len(split)))])


def test_sizes():
    assert [len(DigitsSource().split(split)) for split in ("train", "val", "test")] == [1293, 144, 360]


def test_the_last_scans_test():
    test, raw = DigitsSource().split("test"), sklearn_datasets.load_digits()
    assert np.array_equal(scans(test), (raw.images[-360:] * 255 / 16).round())
    assert [test[index][1] for index in range(360)] == raw.target[-360:].tolist()


def test_train_and_val_are_the_others_each_once():
    train, val, raw = DigitsSource().split("train"), DigitsSource().split("val"), sklearn_datasets.load_digits()
    ours = [scan.tobytes() for scan in np.concatenate([scans(train), scans(val)])]
    theirs = [scan.tobytes() for scan in (raw.images[:-360] * 255 / 16).round().astype(np.uint8)]
    assert sorted(ours) == sorted(theirs)


def test_same_every_time_and_every_class_validates():
    (first_NHW, labels_N), (second_NHW, _) = load_digits_split("val"), load_digits_split("val")
    assert np.array_equal(first_NHW, second_NHW)
    assert np.bincount(labels_N).min() >= 13


def test_images():
    image, label = DigitsSource().split("train")[0]
    assert (image.mode, image.size) == ("L", (8, 8))
    assert isinstance(label, int)
    assert DigitsSource(channels=3).split("train")[0][0].mode == "RGB"
    assert scans(DigitsSource().split("train")).max() == 255


def test_the_scans_are_parsed_once(monkeypatch):
    parsed, load = [], sklearn_datasets.load_digits
    monkeypatch.setattr(sklearn_datasets, "load_digits", lambda: parsed.append(1) or load())
    load_digits_split("val")
    assert len(parsed) == 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_scikit_learn_s_file_is_parsed_once(monkeypatch, split):
    original, parsed = sklearn_datasets.load_digits, []
    monkeypatch.setattr(sklearn_datasets, "load_digits", lambda: parsed.append(split) or original())
    load_digits_split(split)
    assert parsed == [split]
