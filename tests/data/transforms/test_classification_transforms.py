import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.augment import Augment
from longvision.data.transforms.classification import batch_mixup, train_transform
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UserError

NOTHING = {"crop_scale": None, "flip": 0.0}
ALL = Augment(rotate=10, shift=0.1, zoom=0.1, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5)
SPEC = InputSpec((24, 40))


def noise(mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def test_same_seed_same_images():
    transform, image = train_transform(ALL, SPEC), noise()

    def five(number):
        seed(number)
        return torch.stack([transform(image) for _ in range(5)])

    first = five(1)
    assert torch.equal(first, five(1))
    assert not torch.equal(first, five(2))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_step_on_grey_and_colour(channels):
    spec = InputSpec((24, 40), channels=channels)
    transform = pickle.loads(pickle.dumps(train_transform(ALL, spec)))
    for number in range(100):  # enough for every operation of RandAugment, at its strongest too
        seed(number)
        result = transform(noise("L" if channels == 1 else "RGB"))
        assert result.shape == (channels, 24, 40)
        assert result.dtype == torch.float32
        assert result.isfinite().all()


def test_switched_off_it_is_the_evaluation_of_the_whole_image():
    square = noise().resize((50, 50))
    spec = InputSpec((24, 24), crop=1.0)
    assert torch.equal(train_transform(Augment(**NOTHING), spec)(square), spec.evaluated(square))


@pytest.mark.parametrize(
    "step",
    [
        {"crop_scale": (0.1, 0.2)},
        {"flip": 1.0},
        {"rotate": 30.0},
        {"shift": 0.3},
        {"zoom": 0.5},
        {"rand_augment": "rand-m9-n4-p1.0"},
        {"erase": 1.0},
    ],
)
def test_each_step_does_something(step):
    seed(0)
    plain = train_transform(Augment(**NOTHING), SPEC)(noise())
    varied = train_transform(Augment(**{**NOTHING, **step}), SPEC)(noise())
    assert not torch.equal(plain, varied)
    if step == {"flip": 1.0}:
        assert torch.equal(plain, varied.flip(2))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_soft_targets(length, alphas):
    """A class has the share of the target that it has of the image: images are filled with their label."""
    mix = batch_mixup(Augment(**alphas), num_classes=10)
    labels_B = torch.arange(length)
    images_BCHW = labels_B.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
    before, shares = images_BCHW.clone(), 0
    for number in range(5):
        seed(number)
        mixed_BCHW, targets_BK = mix(images_BCHW, labels_B)
        assert mixed_BCHW.shape == images_BCHW.shape
        torch.testing.assert_close(targets_BK.sum(1), torch.ones(length))
        torch.testing.assert_close(mixed_BCHW.mean((1, 2, 3)), targets_BK @ torch.arange(10.0))
        assert torch.equal(images_BCHW, before), "the batch that came in was changed"
        shares += int((targets_BK > 0).sum())
    assert (shares > 5 * length) == (length > 1), "nothing was mixed"


def test_no_alpha_no_mixup():
    assert batch_mixup(Augment(), num_classes=10) is None


@pytest.mark.parametrize(
    "values, message",
    [
        ({"crop_scale": (0.5, 0.2)}, "crop_scale"),
        ({"flip": 2.0}, "flip 2.0"),
        ({"shift": -0.1}, "shift -0.1"),
        ({"rotate": -1.0}, "rotate -1.0"),
        ({"zoom": 1.0}, "zoom 1.0"),
        ({"mixup": -1.0}, "mixup -1.0"),
        ({"rand_augment": "strong"}, "rand-m9-mstd0.5-inc1"),
        ({"rand_augment": "rand-x3"}, "rand-x3"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(UserError, match=message):
        Augment(**values)
