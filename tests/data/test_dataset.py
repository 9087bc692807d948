import pickle
import warnings

import pytest
import torch
from PIL import Image

from longvision.data.augment import Augment
from longvision.data.dataset import TransformedSet
from longvision.data.transforms.classification import ClassificationTransforms
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UnreadableImage, UserError

TRANSFORMS = ClassificationTransforms(Augment(), InputSpec((8, 8)), 3)


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
    return TransformedSet(Set(length, broken), TRANSFORMS, "here", training=False)


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
    with pytest.raises(UserError, match=r"^4 of 300 images in here cannot be read.*1\.png.*2\.png, 3.*, 4\.png.* 1 %"):
        images[4]


def test_ten_are_named_when_it_stops():
    images = prepared(1000, set(range(11)))
    with pytest.warns(UserWarning):
        assert not any(images[index] for index in range(10))
    with pytest.raises(UserError) as caught:
        images[10]
    assert str(caught.value).count(".png") == 10


def test_collate_drops_what_is_none():
    a, b = torch.zeros(3, 4, 4), torch.ones(3, 4, 4)
    images_BCHW, labels_B = prepared(3, set()).collate([(a, 2), None, (b, 1)])
    assert torch.equal(images_BCHW, torch.stack([a, b]))
    assert labels_B.tolist() == [2, 1]
    assert labels_B.dtype == torch.int64


def test_nothing_left_of_a_batch():
    assert prepared(3, set()).collate([None, None]) == ([], [])


def test_pickles():
    image, label = pickle.loads(pickle.dumps(prepared(10, set())))[4]
    assert (image.shape, label) == ((3, 8, 8), 1)
