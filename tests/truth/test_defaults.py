"""Defaults of the libraries underneath: those that decide something are ours, and what they decide is said."""

from types import SimpleNamespace

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
from longvision.types import Detections

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


# -- how many objects an image can have -------------------------------------------------------------------------------

GRID = torch.tensor(
    [[16.0 * (k % 15), 24.0 * (k // 15), 16.0 * (k % 15) + 10, 24.0 * (k // 15) + 10] for k in range(150)]
)


@pytest.mark.parametrize(
    "most, expected",
    [pytest.param(150, 1.0, id="150 cells (detectron2#1164)"), pytest.param(100, 0.67, id="100 of 150 cells")],
)
def test_ap_counts_as_many_objects_as_the_model_may_find(most, expected):
    pytest.importorskip("faster_coco_eval")
    from longvision.metrics.average_precision import CocoAveragePrecision

    metric = CocoAveragePrecision(1, most=most)
    labels = torch.zeros(150, dtype=torch.long)
    metric.update([Detections(GRID, torch.linspace(1, 0.5, 150), labels)], [as_target(1, GRID, labels)])
    assert metric.compute()["box_ap"].item() == pytest.approx(expected, abs=0.01)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of small models with random weights, which score everything alike."""
    from support.trained import write_model

    folder = tmp_path_factory.mktemp("weights")
    for task in ("detection", "detr"):
        write_model(task, folder / f"{task}.safetensors")
    return folder


def test_the_number_of_objects_is_an_option_and_a_full_list_is_told(weights):
    from longvision.inference import Predictor
    from longvision.inference.outputs import ObjectFiles

    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    found = {most: Predictor(weights / "detection.safetensors", detections=most)(image) for most in (5, 150)}
    assert all(len(result.detections) == result.full == most for most, result in found.items())
    assert found[5].least_score == 0.05 <= found[150].detections.scores.min()
    said = {}
    for most, result in found.items():
        output = ObjectFiles(result.classes, None)
        output.add(result)
        assert "0.05" in output.about and "0.50" in output.about
        said[most] = output.remarks()
        (line,) = said[most]
        assert f"{most} of {most}" in line and "--detections" in line and "image-1" in line and "unsure" in line


def test_the_queries_of_a_detr_are_its_objects(weights):
    from longvision.errors import UserError
    from longvision.inference import Predictor

    with pytest.raises(UserError, match="queries"):
        Predictor(weights / "detr.safetensors", detections=200)
    model = Predictor(weights / "detr.safetensors").model
    scores = torch.tensor([0.9, 0.3, 0.06, 0.05, 0.05])
    assert (model.most, model.least_score) == (5, 0.0)
    assert model.is_full(Detections(torch.zeros(5, 4), scores, torch.zeros(5)))
    assert not model.is_full(Detections(torch.zeros(5, 4), scores / 2, torch.zeros(5)))  # some found nothing


@pytest.mark.parametrize("task, option", [("detection", "detections"), ("detr", "queries")])
def test_training_and_evaluation_tell_that_there_are_more_objects(task, option):
    from longvision.registry import TASKS, load
    from longvision.types import DataInfo

    options = {"name": "vim_nano_patch4_32", "args": {"depth": 1, "embed_dim": 32, "patch_size": 8}, "width": 16}
    config = load(TASKS[task].config)(**options, **{option: 3}, **({"layers": 1} if task == "detr" else {}))
    module = load(TASKS[task].module)(config, DataInfo("cells", ["cell"], (64, 64), 3))
    assert module.head[option] == 3  # stored with the weights: predict does as validate
    source = SimpleNamespace(most_objects=4)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(source=source), is_global_zero=True)
    with pytest.warns(UserWarning, match=f"4 objects.* 3 .*--model.{option}"):
        module.on_fit_start()
    assert module.remarks() == []
    module.full, module.evaluated = 2, 8
    (line,) = module.remarks()
    assert "2 of 8 images 3 of 3 objects" in line and f"--model.{option}" in line


# -- defaults that are taken as they are: docs/defaults.md says them ---------------------------------------------------


@pytest.mark.parametrize(
    "where, expected",
    [
        ("timm.data.Mixup", {"prob": 1.0, "switch_prob": 0.5, "mode": "batch", "correct_lam": True}),
        (
            "timm.data.random_erasing.RandomErasing",
            {"min_area": 0.02, "max_area": 1 / 3, "min_aspect": 0.3, "min_count": 1, "max_count": None},
        ),
        ("timm.data.auto_augment.AugmentOp", {"prob": 0.5}),
        ("torchvision.transforms.v2.RandomResizedCrop", {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}),
        ("torchvision.transforms.v2.RandomAffine", {"fill": 0}),
        ("torchvision.models.detection.rpn.RegionProposalNetwork", {"score_thresh": 0.0}),
        ("torchmetrics.classification.MulticlassConfusionMatrix", {"ignore_index": None, "normalize": None}),
        ("torchmetrics.classification.MulticlassAccuracy", {"top_k": 1, "ignore_index": None}),
        (
            "lightning.Trainer",
            {"num_sanity_val_steps": None, "gradient_clip_val": None, "deterministic": None, "benchmark": None},
        ),
        ("torch.nn.functional.cross_entropy", {"label_smoothing": 0.0, "reduction": "mean"}),
    ],
    ids=lambda value: value.rpartition(".")[2] if isinstance(value, str) else "",
)
def test_the_installed_libraries_have_the_defaults_that_are_stated(where, expected):
    from inspect import signature

    from longvision.registry import load

    given = signature(load(where)).parameters
    assert {name: given[name].default for name in expected} == expected


def test_heads_have_the_thresholds_that_are_stated(weights):
    from longvision.inference import Predictor

    model = Predictor(weights / "detection.safetensors").model
    heads, rpn = model.roi_heads, model.rpn
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert (rpn.nms_thresh, rpn.min_size, rpn.score_thresh) == (0.7, 1e-3, 0.0)
    matcher = rpn.proposal_matcher
    assert (matcher.high_threshold, matcher.low_threshold, matcher.allow_low_quality_matches) == (0.7, 0.3, True)
