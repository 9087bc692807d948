from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.augment import DenseAugment
from longvision.data.transforms.input_spec import InputSpec
from longvision.data.transforms.segmentation import SegmentationTransforms
from longvision.types import IGNORE

RAW = {"mean": (0.0,), "std": (1 / 255,)}  # images come out as their grey values


def train_crop(augment, spec):
    return partial(SegmentationTransforms(augment, spec).train, images=None)


def ramp(height, width, down=False):
    """0 to 254, left to right or top to bottom."""
    row = np.linspace(0, 254, height if down else width).round().astype(np.uint8)
    return np.tile(row[:, None], (1, width)) if down else np.tile(row, (height, 1))


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0), (0.1, 0.4)])
@pytest.mark.parametrize("resize", ["none", "short", "fit"])
def test_image_and_mask_stay_on_each_other(down, scale, resize):
    values = ramp(150, 170, down)
    spec = InputSpec((96, 80), 1, **RAW, resize=resize)
    crop = train_crop(DenseAugment(scale, flip=0.5, photometric=0, most=1), spec)
    for _ in range(20):
        image, truth = crop(Image.fromarray(values), values)
        assert image.shape == (1, 96, 80) and image.dtype == torch.float32
        assert truth.shape == (96, 80) and truth.dtype == torch.int64
        counted = truth != IGNORE
        assert counted.any()
        # a pixel's neighbour is 254/149 away, 17 times that at a scale of 0.1, and the border lacks one side
        step = 254 / 149 / min(scale[0], spec.evaluated_size(150, 170)[0] * scale[0] / 150)
        assert (image[0] - truth)[counted].abs().max() <= step
        assert (image[0] - truth)[counted].mean().abs() < max(1.0, step / 8)


def test_flipped_or_not_they_agree():
    values = ramp(64, 64)
    for flip, falls in ((0.0, False), (1.0, True)):
        crop = train_crop(DenseAugment((1.0, 1.0), flip, 0, 1), InputSpec((64, 64), 1, **RAW, resize="none"))
        image, truth = crop(Image.fromarray(values), values)
        assert (truth[0, 0] > truth[0, -1]) == falls
        assert torch.equal(image[0].round().long(), truth)


def test_both_outcomes_of_a_flip_occur():
    values = ramp(64, 64)
    crop = train_crop(DenseAugment((1.0, 1.0), 0.5, 0, 1), InputSpec((64, 64), 1, **RAW, resize="none"))
    falls = [
        bool(truth[0, 0] > truth[0, -1]) for _, truth in (crop(Image.fromarray(values), values) for _ in range(30))
    ]
    assert 5 < sum(falls) < 25


def test_a_crop_equals_the_resized_image_cut():
    """Only the window is computed: it holds what the whole image, resized, would show there."""
    random = np.random.default_rng(0)
    values = random.integers(0, 255, (90, 70), np.uint8)
    crop = train_crop(DenseAugment((2.0, 2.0), 0, 0, 1), InputSpec((64, 48), 1, **RAW, resize="none"))
    image, _ = crop(Image.fromarray(values), values)
    whole = np.asarray(Image.fromarray(values).resize((140, 180), Image.Resampling.BILINEAR))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (64, 48))
    assert np.abs(windows - image[0].numpy()).max((2, 3)).min() <= 1.01


def test_masks_are_never_blended():
    values = np.random.default_rng(0).choice(np.array([0, 7, 200, IGNORE], np.uint8), (80, 80))
    crop = train_crop(DenseAugment(most=1), InputSpec((64, 64), 1, resize="none"))
    for _ in range(20):
        assert set(crop(Image.fromarray(values), values)[1].unique().tolist()) <= {0, 7, 200, IGNORE}


def test_beyond_a_small_image_is_the_mean_and_does_not_count():
    crop = train_crop(DenseAugment((1.0, 1.0), 0, 0, 1), InputSpec((8, 9), resize="none"))
    image, truth = crop(Image.fromarray(np.full((5, 6, 3), 255, np.uint8)), np.ones((5, 6), np.uint8))
    assert (truth == 1).sum() == 30 and (truth[:5, :6] == 1).all() and (truth[5:] == IGNORE).all()
    assert (image[:, :5, :6] > 2).all()
    assert (image[:, 5:] == 0).all() and (image[:, :, 6:] == 0).all()


def test_crops_come_from_everywhere():
    values = ramp(40, 250)
    crop = train_crop(DenseAugment((1.0, 1.0), 0, 0, 1), InputSpec((40, 50), 1, resize="none"))
    lefts = [int(crop(Image.fromarray(values), values)[1][0, 0]) for _ in range(200)]
    assert min(lefts) < 10 and max(lefts) > 193


def test_a_crop_of_almost_one_class_is_drawn_again():
    values = np.zeros((40, 400), np.uint8)
    values[:, 200:240] = 1
    values[:20, 320:] = IGNORE

    def mixed(most):
        crop = train_crop(DenseAugment((1.0, 1.0), 0, 0, most), InputSpec((40, 40), 1, resize="none"))
        shown = [crop(Image.fromarray(values), values)[1] for _ in range(60)]
        return sum(bool((truth == 1).any()) for truth in shown) / len(shown)

    assert mixed(1.0) < 0.4  # 79 of 361 places
    assert mixed(0.75) > 0.6  # one of ten crops, where 60 places are fit


def test_colours_vary_and_truth_does_not():
    colours = Image.fromarray(np.random.default_rng(0).integers(60, 200, (32, 32, 3), np.uint8))
    truth = np.random.default_rng(1).integers(0, 3, (32, 32), np.uint8)
    for channels in (1, 3):
        spec = InputSpec((32, 32), channels, resize="none")
        plain, _ = train_crop(DenseAugment((1.0, 1.0), 0, 0, 1), spec)(colours, truth)
        varied = train_crop(DenseAugment((1.0, 1.0), 0, 1, 1), spec)
        seen = [varied(colours, truth) for _ in range(5)]
        assert all(torch.equal(mask, torch.from_numpy(truth).long()) for _, mask in seen)
        assert all(image.shape == (channels, 32, 32) and not torch.equal(image, plain) for image, _ in seen)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"flip": 1.5}, "flip 1.5"),
        ({"photometric": -1}, "photometric -1"),
        ({"most": 0}, "most 0"),
    ],
)
def test_augmentation_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        DenseAugment(**arguments)
