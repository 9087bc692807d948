import numpy as np
import pytest

from longvision.data.sources.scattered import ScatteredDigits
from longvision.data.sources.scattered_sets import ScatteredMode, ScatteredSegmentation

pytest.importorskip("sklearn.datasets")


def test_which_digit_occurs_most():
    source = ScatteredMode((64, 96), channels=3, count=5)
    assert source.classes == list("0123456789") and source.has_test
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [5, 200, 400]
    pictures, scenes = source.split("val"), ScatteredDigits("val", 10, (64, 96))
    image, _ = pictures[1]
    assert image.mode == "RGB" and image.size == (96, 64)
    assert [pictures[index][1] for index in range(10)] == [scenes.scene(index).most for index in range(10)]


def test_which_digit_each_pixel_shows():
    source = ScatteredSegmentation((48, 64), count=3)
    assert source.classes == ["background", *"0123456789"] and len(set(source.palette)) == 11
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [3, 200, 400]
    image, truth = source.split("train")[1]
    assert image.size == (64, 48) and truth.shape == (48, 64) and truth.max() > 0


def test_batches_to_classify():
    pytest.importorskip("lightning")
    from longvision.data.config import MostDigitsData

    data = MostDigitsData(size=(48, 64), batch_size=4, workers=0, pictures=9).build()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 1, 48, 64) and labels.shape == (4,)
    assert len(data.images("train")) == 9
    image, seen, _ = data.sample("val", 0)
    grey = seen[0].numpy() * data.input.std[0] + data.input.mean[0]
    assert np.abs(grey * 255 - np.asarray(image)).max() < 0.01  # not resized
