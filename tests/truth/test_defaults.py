"""Defaults of the libraries underneath: those that decide something are ours, and what they decide is said."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("torchvision")
from longvision.data.augment import Augment, DenseAugment, DetectionAugment
from longvision.data.sources.objects import as_target
from longvision.data.transforms.classification import ClassificationTransforms
from longvision.data.transforms.detection import DetectionTransforms
from longvision.data.transforms.input_spec import InputSpec
from longvision.data.transforms.segmentation import SegmentationTransforms

SIZE = (16, 16)
STRIPES = np.repeat(np.arange(16, dtype=np.uint8) % 2, 16).reshape(16, 16)  # a mask of two classes
VARIED = {
    "photometric": (DetectionTransforms, DetectionAugment((1, 1), flip=0, photometric=1), as_target(1, [], [])),
    "dense photometric": (SegmentationTransforms, DenseAugment((1, 1), flip=0, photometric=1), STRIPES),
    "rand_augment": (ClassificationTransforms, Augment((1, 1), flip=0, rand_augment="rand-m9-mstd0.5-inc1"), 0),
}


def varied(name, image, count):
    """(count, C) the mean colours of an image varied so often, from 0 to 1."""
    kind, augment, label = VARIED[name]
    spec = InputSpec(
        SIZE, 1 if image.mode == "L" else 3, (0.0,) * len(image.getbands()), (1.0,) * len(image.getbands())
    )
    transforms = kind(augment, spec, 2) if kind is ClassificationTransforms else kind(augment, spec)
    return torch.stack([transforms.train(image, label, None)[0].mean((1, 2)) for _ in range(count)])


@pytest.mark.parametrize("name", ["photometric", "dense photometric"])
@pytest.mark.parametrize(
    "colour",
    [
        pytest.param((220, 40, 40), id="red (vision#8570)"),
        pytest.param((40, 220, 40), id="green traffic light"),
        pytest.param((40, 40, 220), id="blue stain"),
    ],
)
def test_channels_stay_where_they_are(name, colour):
    seen = varied(name, Image.new("RGB", SIZE, colour), 60)
    assert set(seen.argmax(1).tolist()) == {int(np.argmax(colour))}
    assert seen.std(0).max() > 0.02  # they are varied


@pytest.mark.parametrize("name", VARIED)
def test_grey_images_are_varied_too(name):
    pixels = np.linspace(60, 200, 256).astype(np.uint8).reshape(SIZE)
    seen = varied(name, Image.fromarray(pixels), 40)
    assert seen.isfinite().all() and seen.std() > 0.005
