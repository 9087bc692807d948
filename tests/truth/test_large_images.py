"""Large images are what the package is for: no limit of a library's in the way, and masks only where they are seen."""

import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

pytest.importorskip("torchmetrics")
pytest.importorskip("faster_coco_eval")
from longvision.data.augment import DetectionAugment
from longvision.data.io.coco_masks import drawn, mask_tools
from longvision.data.io.headers import read_header
from longvision.data.io.images import is_image, read_image
from longvision.data.io.object_masks import ObjectMasks, drawn_part
from longvision.data.sources.objects import as_target
from longvision.data.transforms.detection import DetectionTransforms, training_sample
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UnreadableImage, UserError
from longvision.metrics.average_precision import CocoAveragePrecision
from longvision.types import Detections


@pytest.fixture
def a_small_limit_of_pillows(monkeypatch):
    """Of 100 pixels: what is true of 200 million is true of 400."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert Image.MAX_IMAGE_PIXELS == 100  # others keep theirs


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tif", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("side", [12, 30])  # where Pillow warns, where it refuses
def test_a_file_that_is_named_is_no_attack(tmp_path, kind, side, a_small_limit_of_pillows):
    path = tmp_path / f"large.{kind}"
    Image.new("RGB", (side, side), "red").save(path)
    assert read_image(path).size == (side, side) == read_header(path).size and is_image(path)
    assert InputSpec((14, 14), crop=1.0).evaluated(read_image(path)).shape == (3, 14, 14)


def test_beyond_the_limit_that_can_be_set(tmp_path, monkeypatch, a_small_limit_of_pillows):
    Image.new("1", (30, 20)).save(tmp_path / "large.png")
    monkeypatch.setenv("LONGVISION_MAX_PIXELS", "599")
    with pytest.raises(UnreadableImage, match=r"large\.png has 30x20 pixels, more than 599 .*LONGVISION_MAX_PIXELS"):
        read_image(tmp_path / "large.png")
    monkeypatch.setenv("LONGVISION_MAX_PIXELS", "600")
    assert read_image(tmp_path / "large.png").size == (30, 20)
    for wrong in ("many", "-5", "0", "1e9"):
        monkeypatch.setenv("LONGVISION_MAX_PIXELS", wrong)
        with pytest.raises(UserError, match=wrong):
            read_image(tmp_path / "large.png")


def polygon(random, points, size, whole):
    angles = np.sort(random.uniform(0, 2 * np.pi, points))
    centre, radius = random.uniform(-5, size, 2), random.uniform(1, size / 2)
    corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(0.3, 1, (points, 1))
    return (corners.round() if whole else corners.round(random.integers(1, 4))).ravel().tolist()


def shapes_of(size, seed):
    """Polygons of whole pixels and of fractions, several parts, over the edges, and run lengths of both kinds."""
    random = np.random.default_rng(seed)
    shapes = [[polygon(random, n, size, n % 2) for _ in range(1 + n % 3)] for n in range(3, 12)]
    shapes += [
        [[10.1, 10.1, 30.1, 10.1, 30.1, 30.1, 10.1, 30.1]],
        [[-9, -9, size + 9, -9, size + 9, size + 9, -9, size]],
    ]
    shapes += [[[5, 5, 5, 5, 5, 5]], [[size + 5, 3, size + 9, 3, size + 9, 9]], [[1, 2, 3, 4], [1, 2, 9, 4, 6, 9]]]
    for number in (0, 9):
        mask_HW = drawn(shapes[number], size, size)
        rle = mask_tools().encode(np.asfortranarray(mask_HW))
        shapes.append({"size": [size, size], "counts": rle["counts"].decode()})
    shapes.append({"size": [size, size], "counts": [size, size, size * (size - 2)]})
    return shapes


@pytest.mark.parametrize("seed", range(4))
def test_a_mask_drawn_in_its_box_is_the_mask(seed):
    for shape in shapes_of(60, seed):
        canvas = np.zeros((60, 60), np.uint8)
        top, left, part = drawn_part(shape, 60, 60)
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        assert np.array_equal(canvas, drawn(shape, 60, 60)), shape


@pytest.mark.parametrize(
    "window, size",
    [
        ((0, 0, 60, 60), (13, 13)),
        ((0, 0, 60, 60), (60, 60)),
        ((7, 3, 31, 40), (24, 32)),
        ((20, 30, 9, 5), (64, 64)),
        ((59, 59, 1, 1), (16, 8)),
    ],
    ids=str,
)
def test_masks_drawn_in_the_crop_are_the_crop_of_masks_drawn(window, size):
    """Equal to the byte where torchvision resizes bytes as bytes, which needs AVX2, else within 1 of 255."""
    masks = ObjectMasks(shapes_of(60, 9), (60, 60))
    whole = F.resized_crop(masks.drawn().to(torch.uint8) * 255, *window, list(size), antialias=True)
    apart = (masks.resized_crop(*window, list(size)).int() - whole.int()).abs().max()
    assert apart <= (0 if "AVX" in torch.backends.cpu.get_cpu_capability() else 1)


def test_a_training_sample_is_as_if_its_masks_were_drawn_before(monkeypatch):
    """Jitter, flip, copy-paste and boxes: the same of both."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    shapes = shapes_of(60, 3)
    late = as_target(1, [[0, 0, 60, 60]] * len(shapes), [0] * len(shapes), None, ObjectMasks(shapes, (60, 60)))
    drawn_before = replace(late, masks=late.masks.drawn())
    spec, augment = InputSpec((32, 48), resize="fit"), DetectionAugment((0.3, 2.0), 0.5, 1.0)
    for seed in range(8):
        samples = []
        for target in (late, drawn_before):
            torch.manual_seed(seed)
            samples.append(training_sample(image, target, spec, augment, lambda target=target: (image, target)))
        (one, of_one), (other, of_other) = samples
        assert torch.equal(one, other)
        for name in ("boxes", "labels", "masks"):
            assert torch.equal(getattr(of_one, name), getattr(of_other, name)), name


def test_masks_of_150_objects_on_12_megapixels_are_never_drawn_whole(monkeypatch):
    """Mask_RCNN#2285. Drawn whole they are 1.8 GB; here the largest array is counted, not the clock."""
    height, width = 3000, 4000
    places = [(10 + k % 15 * 260, 10 + k // 15 * 290) for k in range(150)]
    shapes = [[[x, y, x + 200, y, x + 200, y + 200, x, y + 200]] for x, y in places]
    tracemalloc.start()
    cut = ObjectMasks(shapes, (height, width)).resized_crop(0, 0, height, width, [384, 512])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cut.shape == (150, 384, 512) and (cut.amax((1, 2)) == 255).all()
    assert most < 2_000_000  # NumPy's: one object's part at a time


def test_evaluation_gets_masks_of_the_original(tmp_path):
    shapes = shapes_of(60, 1)
    masks = ObjectMasks(shapes, (60, 60))
    target = as_target(1, [[0, 0, 60, 60]] * len(shapes), [0] * len(shapes), None, masks)
    _, seen = DetectionTransforms(DetectionAugment(), InputSpec((32, 32))).evaluate(Image.new("RGB", (60, 60)), target)
    assert torch.equal(seen.masks.drawn(), masks.drawn())
    assert torch.equal(target.select(torch.arange(len(shapes)) % 2 == 0).masks.drawn(), seen.masks.drawn()[::2])


@pytest.mark.parametrize("found", ["all", "none", "others"])
def test_masks_that_are_not_drawn_are_measured_as_if_they_were(found):
    shapes = shapes_of(60, 1)
    masks = ObjectMasks(shapes, (60, 60))
    late = as_target(
        1, [[0, 0, 60, 60]] * len(shapes), [0] * len(shapes), [False] * 9 + [True] * (len(shapes) - 9), masks
    )
    drawn_masks = masks.drawn()
    guess = {"all": drawn_masks, "none": drawn_masks[:0], "others": drawn_masks.roll(3, 0).roll(5, 1)}[found]
    boxes = torch.tensor([[0.0, 0, 60, 60]]).repeat(len(guess), 1)
    detections = Detections(
        boxes, torch.linspace(0.9, 0.1, len(guess)), torch.zeros(len(guess), dtype=torch.int64), guess
    )
    reached = []
    for target in (late, replace(late, masks=drawn_masks)):
        metric = CocoAveragePrecision(1, masks=True)
        metric.update([detections, detections], [target, late])
        reached.append({name: value.tolist() for name, value in metric.compute().items()})
    assert str(reached[0]) == str(reached[1])  # NaN too


def test_evaluation_draws_no_mask_of_150_on_12_megapixels():
    """Target of one image from its labels into the metric: drawn it would be 1.8 GB."""
    shapes = [[[x, 10, x + 20, 10, x + 20, 3000, x, 3000]] for x in range(150)]
    target = as_target(1, [[0, 0, 9, 9]] * 150, [0] * 150, None, ObjectMasks(shapes, (3000, 4000)))
    metric = CocoAveragePrecision(1, masks=True)
    nothing = Detections(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3000, 4000).bool()
    )
    tracemalloc.start()
    transforms = DetectionTransforms(DetectionAugment(), InputSpec((8, 8), resize="fit"))
    _, seen = transforms.evaluate(Image.new("L", (4000, 3000)), target)
    metric.update([nothing], [seen.to("cpu")])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000
