from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from longvision.data.augment import DetectionAugment
from longvision.data.sources.objects import as_target
from longvision.data.transforms.detection import jittered, pasted, tight_boxes, training_sample
from longvision.data.transforms.input_spec import InputSpec
from longvision.errors import UserError

SIZE = (96, 128)
BLACK = {"mean": (0.01,), "std": (1.0,)}  # mean colour 3 of 255: what is padded is dark
SPEC = InputSpec(SIZE, 1, **BLACK)


def blank(height=60, width=90):
    return np.zeros((height, width), bool)


def blobs(count=4, height=60, width=90):
    """Discs that do not touch, bool (N, H, W)."""
    masks_NHW = np.zeros((count, height, width), bool)
    rows, columns = np.mgrid[:height, :width]
    for number in range(count):
        cell = width // count
        middle, radius = cell * number + cell // 2, cell // 2 - 3
        masks_NHW[number] = (columns - middle) ** 2 + (rows - 15 - 8 * number) ** 2 < radius**2
    return torch.from_numpy(masks_NHW)


def sample(masks_NHW, shown=None, crowd=None, with_masks=True):
    """An image white where `shown` is (all masks when left out), and its target."""
    shown = masks_NHW.any(0) if shown is None else shown
    image = Image.fromarray(shown.numpy().astype(np.uint8) * 255)
    boxes_N4, labels = tight_boxes(masks_NHW), list(range(len(masks_NHW)))
    return image, as_target(5, boxes_N4, labels, crowd, masks_NHW.numpy() if with_masks else None)


def bright(image_CHW):
    return image_CHW[0] >= 128


def box_of(mask_HW):
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_an_image_drawn_from_its_masks_stays_on_them():
    """Every object alone in its image: after any jitter the mask and the box are the bright pixels'."""
    masks_NHW, left, cut = blobs(), 0, 0
    for turn in range(200):
        alone = masks_NHW[turn % 4][None]
        image_CHW, target = jittered(*sample(alone), SPEC, DetectionAugment())
        assert image_CHW.shape == (1, *SIZE)
        seen_HW = bright(image_CHW)
        if not seen_HW.any():
            assert len(target.labels) == 0
            continue
        left += 1
        assert torch.equal(target.masks[0], seen_HW)
        assert target.boxes.tolist() == [box_of(seen_HW.numpy())]
        cut += bool(seen_HW[0].any() or seen_HW[:, 0].any() or seen_HW[:, -1].any() or seen_HW[-1].any())
    assert left > 100 and cut > 5  # or this tests little


def test_boxes_without_masks_follow_the_image():
    """To a pixel: they are not rounded, the image's pixels are."""
    augment, left = DetectionAugment(scale=(0.5, 2.0)), 0
    for turn in range(100):
        alone = torch.zeros(1, 60, 90, dtype=torch.bool)
        alone[0, turn % 20 : turn % 20 + 25, turn % 30 : turn % 30 + 35] = True
        image_CHW, target = jittered(*sample(alone, with_masks=False), SPEC, augment)
        seen_HW = bright(image_CHW)
        if seen_HW.sum() > 20:
            left += 1
            assert target.boxes[0].tolist() == pytest.approx(box_of(seen_HW.numpy()), abs=1.5)
            x1, y1, x2, y2 = target.boxes[0].tolist()
            assert 0 <= x1 < x2 <= SIZE[1] and 0 <= y1 < y2 <= SIZE[0]
    assert left > 50


def test_boxes_at_the_edge_survive_rounding():
    """A box as wide as its image may be enlarged to a little more than the model's width."""
    image = Image.new("L", (427, 427))
    target = as_target(0, [[0, 0, 427, 427]], [0])
    for side in (111, 222, 244, 255):
        assert torch.tensor(427.0) * (side / 427) > side  # or this tests nothing
        preprocess = InputSpec((side, side), 1)
        _, changed = jittered(image, target, preprocess, DetectionAugment(scale=(1, 1), flip=0))
        assert changed.boxes.tolist() == [[0, 0, side, side]]


def test_each_label_keeps_its_object():
    """Objects in greys of their own: a label's mask covers its grey."""
    masks_NHW = blobs()
    greys = (masks_NHW * torch.tensor([60, 120, 180, 240])[:, None, None]).sum(0)
    image = Image.fromarray(greys.numpy().astype(np.uint8))
    _, target = sample(masks_NHW)
    for _ in range(50):
        image_CHW, changed = jittered(image, target, SPEC, DetectionAugment(scale=(0.8, 2.0)))
        for label, mask_HW, crowd in zip(changed.labels, changed.masks, changed.iscrowd, strict=True):
            assert image_CHW[0][mask_HW].median() == pytest.approx(60 * (label + 1), abs=8) or mask_HW.sum() < 30
            assert not crowd


@pytest.mark.parametrize("height, width", [(60, 90), (300, 40), (1, 500), (7, 7)])
@pytest.mark.parametrize("scale", [(0.1, 0.1), (1, 1), (2, 2), (40, 40)])
def test_every_image_comes_out_at_the_models_size(height, width, scale):
    mask_HW = torch.ones(1, height, width, dtype=torch.bool)
    image_CHW, target = jittered(*sample(mask_HW), SPEC, DetectionAugment(scale=scale))
    assert image_CHW.shape == (1, *SIZE)
    assert target.masks.shape == (1, *SIZE)
    factor = scale[0] * min(SIZE[0] / height, SIZE[1] / width)
    expected = [min(SIZE[1], width * factor), min(SIZE[0], height * factor)]
    assert target.boxes[0, 2:].tolist() == pytest.approx(expected, abs=1)


def test_padding_has_the_mean_colour_on_the_right_and_below():
    preprocess = InputSpec((64, 64), 3)
    image = Image.new("RGB", (64, 64), "white")
    augment = DetectionAugment(scale=(0.5, 0.5))
    image_CHW, _ = training_sample(image, as_target(0, [], []), preprocess, augment, lambda: None)
    assert image_CHW.dtype == torch.float32 and type(image_CHW) is torch.Tensor
    assert image_CHW[:, :32, :32].min() > 1
    image_CHW[:, :32, :32] = 0
    assert image_CHW.abs().max() < 0.01  # half a grey level


def test_flip_is_drawn_with_its_probability():
    masks_NHW = blank()
    masks_NHW[:, :20] = True
    image, target = sample(torch.from_numpy(masks_NHW)[None])
    for flip, expected in ((0.0, 0), (1.0, 200), (0.5, 100)):
        augment = DetectionAugment(scale=(0.5, 0.5), flip=flip)
        boxes = [jittered(image, target, SPEC, augment)[1].boxes[0] for _ in range(200)]
        assert abs(sum(box[0] > 0 for box in boxes) - expected) <= (30 if flip == 0.5 else 0)


def test_sizes_are_drawn_from_the_whole_range():
    image, target = sample(torch.ones(1, 96, 128, dtype=torch.bool))
    augment = DetectionAugment(scale=(0.1, 0.9))
    widths = [float(jittered(image, target, SPEC, augment)[1].boxes[0, 2]) / 128 for _ in range(300)]
    assert min(widths) == pytest.approx(0.1, abs=0.02)
    assert max(widths) == pytest.approx(0.9, abs=0.02)
    assert sum(widths) / 300 == pytest.approx(0.5, abs=0.05)


def test_crops_come_from_everywhere():
    corners = torch.zeros(4, 96, 128, dtype=torch.bool)
    for number, (row, column) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
        corners[number, row, column] = True
    image, target = sample(corners)
    augment = DetectionAugment(scale=(1.02, 1.02), flip=0)
    seen = [set(jittered(image, target, SPEC, augment)[1].labels.tolist()) for _ in range(200)]
    assert set.union(*seen) == {0, 1, 2, 3}


def test_crowds_do_not_train():
    _, target = jittered(*sample(blobs(), crowd=[False, True, False, True]), SPEC, DetectionAugment((1, 1)))
    assert sorted(target.labels.tolist()) == [0, 2]


@pytest.mark.parametrize("with_masks, tall", [(True, 4), (False, 4), (False, 40)])
def test_objects_below_a_pixel_are_dropped(with_masks, tall):
    """In width or height, whichever is less."""
    masks_NHW = torch.zeros(2, 96, 128, dtype=torch.bool)
    masks_NHW[0, 2 : 2 + tall, 2:6] = True
    masks_NHW[1, 40:90, 40:100] = True
    _, target = jittered(*sample(masks_NHW, with_masks=with_masks), SPEC, DetectionAugment((0.2, 0.2)))
    assert target.labels.tolist() == [1]


@pytest.mark.parametrize("with_masks", [True, False])
def test_an_image_without_objects(with_masks):
    empty = sample(torch.zeros(0, 60, 90, dtype=torch.bool), torch.zeros(60, 90), with_masks=with_masks)
    augment = DetectionAugment(copy_paste=float(with_masks), photometric=1.0)
    image_CHW, target = training_sample(*empty, SPEC, augment, lambda: empty)
    assert image_CHW.shape == (1, *SIZE)
    assert target.boxes.shape == (0, 4) and target.labels.shape == (0,)
    assert not with_masks or target.masks.shape == (0, *SIZE)


def test_photometric_changes_the_colours_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(80, 160, (96, 128, 3), np.uint8))
    target = as_target(0, [[0, 0, 50, 50]], [1])
    preprocess = InputSpec(SIZE, 3)
    plain, _ = jittered(image, target, preprocess, DetectionAugment((1, 1), flip=0))
    assert torch.equal(plain, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    changed, objects = jittered(image, target, preprocess, DetectionAugment((1, 1), flip=0, photometric=1))
    assert not torch.equal(plain, changed)
    assert objects.boxes.tolist() == [[0, 0, 50, 50]]


def two_views():
    """Below: a square of 40 that all of `above` covers but 9 %, one of 20 that it misses. Above: one object."""
    below_NHW = torch.zeros(2, *SIZE, dtype=torch.bool)
    below_NHW[0, 10:50, 10:50] = True
    below_NHW[1, 60:80, 60:80] = True
    above_NHW = torch.zeros(1, *SIZE, dtype=torch.bool)
    return below_NHW, above_NHW


def view(masks_NHW, grey, first_label):
    labels = torch.arange(len(masks_NHW)) + first_label
    target = as_target(grey, tight_boxes(masks_NHW), labels, None, masks_NHW.numpy())
    return torch.full((1, *SIZE), grey, dtype=torch.uint8), replace(target, size=SIZE)


def paste_one(covered_rows, monkeypatch):
    """Paste a rectangle over the first `covered_rows` of the 40 rows of the first object below."""
    below_NHW, above_NHW = two_views()
    above_NHW[0, 5 : 10 + covered_rows, 5:55] = True
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.zeros(*shape))  # paste every object
    return above_NHW, pasted(view(below_NHW, 50, 0), view(above_NHW, 200, 7))


def test_pasted_objects_hide_what_is_below(monkeypatch):
    above_NHW, (image_CHW, target) = paste_one(30, monkeypatch)
    assert torch.equal(image_CHW[0] == 200, above_NHW[0])
    assert torch.equal(image_CHW[0] == 50, ~above_NHW[0])
    assert target.labels.tolist() == [0, 1, 7]
    assert target.image_id == 50
    assert target.boxes.tolist() == [[10, 40, 50, 50], [60, 60, 80, 80], [5, 5, 55, 40]]
    assert target.masks.sum((1, 2)).tolist() == [400, 400, 35 * 50]
    assert (target.masks.sum(0) <= 1).all()
    assert len(target.iscrowd) == 3


@pytest.mark.parametrize("covered_rows, labels", [(35, [0, 1, 7]), (36, [1, 7]), (40, [1, 7])])
def test_what_is_nine_tenths_hidden_is_dropped(covered_rows, labels, monkeypatch):
    _, (_, target) = paste_one(covered_rows, monkeypatch)
    assert target.labels.tolist() == labels
    assert len(target.boxes) == len(target.masks) == len(labels)


def test_some_of_the_objects_are_pasted():
    other_NHW = blobs(4, *SIZE)
    below_NHW = torch.zeros(0, *SIZE, dtype=torch.bool)
    counts = [len(pasted(view(below_NHW, 50, 0), view(other_NHW, 200, 0))[1].labels) for _ in range(100)]
    assert {0, 4} < set(counts)
    assert sum(counts) == pytest.approx(200, abs=40)


def test_copy_paste_draws_another_image_with_its_probability():
    masks_NHW, drawn = blobs(), []

    def another():
        drawn.append(1)
        return sample(masks_NHW)

    for _ in range(100):
        image_CHW, target = training_sample(*sample(masks_NHW[:1]), SPEC, DetectionAugment(copy_paste=0.3), another)
        assert torch.equal(tight_boxes(target.masks), target.boxes)
        assert target.image_id == 5
        seen_HW = (image_CHW[0] * 1.0 + 0.01) * 255 >= 127.5
        assert torch.equal(seen_HW | target.masks.any(0), seen_HW)  # no object where nothing is to be seen
    assert 15 <= len(drawn) <= 45


def test_tight_boxes_are_exclusive_and_know_empty_masks():
    masks_NHW = torch.zeros(3, 6, 9, dtype=torch.bool)
    masks_NHW[0, 2:4, 3:8] = True
    masks_NHW[2, 5, 8] = True
    assert tight_boxes(masks_NHW).tolist() == [[3, 2, 8, 4], [0, 0, 0, 0], [8, 5, 9, 6]]
    assert tight_boxes(masks_NHW[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scale": (0, 1)}, r"scale \(0, 1\): expected two factors"),
        ({"scale": (2, 1)}, r"scale \(2, 1\)"),
        ({"flip": 1.5}, r"flip 1\.5: expected a number from 0 to 1"),
        ({"copy_paste": -1}, "copy_paste -1"),
        ({"photometric": 2}, "photometric 2"),
    ],
)
def test_augment_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        DetectionAugment(**changes)


def test_augment_from_lists():
    assert DetectionAugment(scale=[0.5, 1.0]) == DetectionAugment(scale=(0.5, 1.0))


def test_what_is_not_padding_is_said():
    """Of an image of 2:1 at half its size: half as high and wide as the canvas, and half of that again."""
    image = Image.new("L", (80, 40), 255)
    preprocess = InputSpec((64, 64), 1)
    nothing = as_target(0, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    seen_CHW, target = training_sample(image, nothing, preprocess, DetectionAugment((0.5, 0.5), 0), lambda: None)
    assert target.size == (16, 32)
    assert (seen_CHW[:, :16, :32] > 1).all() and (seen_CHW[:, 16:].abs() < 0.1).all()
