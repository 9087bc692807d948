import numpy as np
import pytest

pytest.importorskip("sklearn")
from longvision.data.sources.digits import DigitsSource
from longvision.data.sources.mixed_digits import LONGEST, SHORT, MixedDigitsSource


def test_every_image_has_a_shape_of_its_own():
    images = [MixedDigitsSource().split("val")[row] for row in range(144)]
    assert [label for _, label in images] == [label for _, label in DigitsSource().split("val")]
    sizes = np.array([image.size for image, _ in images])
    assert (sizes.min(1) >= SHORT[0]).all() and (sizes.min(1) <= SHORT[1]).all()
    ratio = sizes[:, 0] / sizes[:, 1]
    assert 1 < ratio.max() <= LONGEST and 1 / LONGEST <= ratio.min() < 1
    assert len({tuple(size) for size in sizes}) > 100


def test_the_digit_is_there_and_the_same_every_time():
    (first, _), (again, _) = (MixedDigitsSource().split("train")[5] for _ in range(2))
    assert np.array_equal(first, again)
    scan = np.asarray(DigitsSource().split("train")[5][0])
    pixels, side = np.asarray(first), min(first.size)
    assert pixels.sum() / side**2 == pytest.approx(scan.sum() / 64, rel=0.1)  # all of it, nothing else
    assert MixedDigitsSource(channels=3).split("train")[0][0].mode == "RGB"
