import pickle
import warnings

import pytest
import torch
from PIL import Image

from longvision.data.faults import Prepared, collate, report
from longvision.data.io.images import UnreadableImage
from longvision.data.transforms.preprocess import Preprocess


class Set:
    """So many images, of which those at `broken` cannot be read."""

    def __init__(self, length, broken):
        self.length = length
        self.broken = broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableImage(f"{index}.png cannot be read as an image: truncated")
        return Image.new("RGB", (8, 8)), index % 3


def prepared(length, broken):
    return Prepared(Set(length, broken), Preprocess((8, 8)).transform(), "here")


def test_report_names_the_first_ten():
    names = [f"{number}.txt" for number in range(12)]
    with pytest.warns(UserWarning) as caught:
        report(names, 1200, "DIR")
    assert [str(warning.message) for warning in caught] == [
        "12 of 1200 files in DIR are not images and are skipped: " + ", ".join(names[:10]) + ", …"
    ]
    with pytest.raises(ValueError, match=r"^12 of 1199 files in DIR are not images, more than 1 %; .*9\.txt, …$"):
        report(names, 1199, "DIR")


def test_no_fault_no_word():
    with warnings.catch_warnings(action="error"):
        report([], 100, "DIR")


def test_a_broken_image_is_none_and_named_once():
    images = prepared(200, {7, 8})
    with pytest.warns(
        UserWarning, match=r"^7\.png cannot be read as an image: truncated; it is skipped, the 1\. of 200 in here$"
    ):
        assert images[7] is None
    with warnings.catch_warnings(action="error"):
        assert images[7] is None
        assert images[6] is not None


def test_more_than_one_percent_stops():
    images = prepared(300, {1, 2, 3, 4})
    with pytest.warns(UserWarning):
        assert [images[index] for index in (1, 2, 3)] == [None] * 3
    with pytest.raises(ValueError, match=r"^4 of 300 images in here cannot be read.*1\.png.*; 4\.png"):
        images[4]


def test_ten_are_named_when_it_stops():
    images = prepared(1000, set(range(11)))
    with pytest.warns(UserWarning):
        assert not any(images[index] for index in range(10))
    with pytest.raises(ValueError) as caught:
        images[10]
    assert str(caught.value).count(".png") == 10


def test_collate_drops_what_is_none():
    a, b = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    images_BCHW, labels_B = collate([(a, 2), None, (b, 1)])
    assert torch.equal(images_BCHW, torch.stack([a, b]))
    assert labels_B.tolist() == [2, 1]
    assert labels_B.dtype == torch.int64


def test_nothing_left_of_a_batch():
    with pytest.raises(ValueError, match="none of the 2 images of a batch can be read"):
        collate([None, None])


def test_pickles():
    image, label = pickle.loads(pickle.dumps(prepared(10, set())))[4]
    assert (image.shape, label) == ((3, 8, 8), 1)
