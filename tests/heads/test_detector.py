"""Detectors around a backbone: what goes in, what comes out, and that they learn."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision")
from longvision.heads.detection import (
    Detector,
    anchor_sizes,
    at_size,
    create_detector,
    detector_from,
    masks_in_image,
    padded_batch,
)
from longvision.types import Detections, Target

SIZE = (64, 64)


class Info:
    def __init__(self, channels: list[int]) -> None:
        self._channels = channels

    def channels(self) -> list[int]:
        return self._channels

    def reduction(self) -> list[int]:
        return [4, 8, 16, 32]


class Body(nn.Module):
    """Four maps of strides 4 to 32, each a convolution of the one before."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.feature_info = Info(list(channels))
        finer = [nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(channels)]
        self.steps = nn.ModuleList([nn.Conv2d(1, channels[0], 7, 4, 3), *finer])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for step in self.steps:
            x = step(x).relu()
            maps.append(x)
        return maps


def detector(head: str = "cascade", masks: bool = True, channels: tuple[int, ...] = (16,) * 4) -> Detector:
    return detector_from(Body(channels), 2, SIZE, masks, width=16, head=head)  # type: ignore[arg-type]


def target(boxes: list, labels: list[int], size: tuple[int, int] = SIZE, crowd: list[int] | None = None) -> Target:
    boxes_n4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes_n4.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    crowd_n = torch.tensor(crowd or [0] * len(labels), dtype=torch.bool)
    return Target(boxes_n4, torch.tensor(labels, dtype=torch.long), crowd_n, masks)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(1, *size) for size in sizes]


TWO = [[4.0, 4.0, 30.0, 40.0], [30.0, 20.0, 60.0, 60.0]]


@pytest.mark.parametrize("head, stages", [("cascade", 3), ("rcnn", 1)])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("objects", [2, 0])
def test_every_parameter_gets_a_gradient(head: str, stages: int, masks: bool, objects: int):
    model = detector(head, masks)
    losses = model(images(SIZE, SIZE), [target(TWO[:objects], [0, 1][:objects]), target([], [])])
    assert len(losses) == 2 + 2 * stages + masks
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_maps_of_other_widths_go_through_an_fpn_without_batch_norm():
    model = detector(channels=(8, 16, 24, 32))
    sum(model(images(SIZE), [target(TWO, [0, 1])]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in model.modules())
    assert all(map_BChw.shape[1] == 16 for map_BChw in model.backbone(torch.randn(1, 1, *SIZE)).values())


def test_maps_and_proposals_are_float32_under_autocast():
    model = detector()
    with torch.autocast("cpu", torch.bfloat16):
        batch, maps = model._maps(images(SIZE))
        proposals, losses = model.rpn(batch, maps, [{"boxes": torch.tensor(TWO)}])
    assert {map_BChw.dtype for map_BChw in maps.values()} == {torch.float32}
    assert proposals[0].dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {anchors.dtype for anchors in model.rpn.anchor_generator.cell_anchors} == {torch.float32}


def test_crowds_are_not_learned():
    wanted = detector()._wanted(target([*TWO, TWO[0]], [0, 1, 1], crowd=[0, 1, 0]), 0)
    assert wanted.labels.tolist() == [0, 1]
    assert wanted.boxes.tolist() == TWO[:1] * 2
    assert wanted.masks.shape == (2, *SIZE)


def test_only_crowds_is_as_nothing():
    losses = detector()(images(SIZE), [target(TWO, [0, 1], crowd=[1, 1])])
    assert losses["loss_mask"] == 0 and losses["loss_rpn_box_reg"] == 0


@pytest.mark.parametrize("sizes, expected", [(((20, 30),), (64, 64)), (((65, 10), (20, 130)), (128, 192))])
def test_images_are_padded_to_the_training_size_or_what_64_divides(sizes: tuple, expected: tuple):
    one = images(*sizes)
    batch = padded_batch(one, SIZE)
    assert batch.tensors.shape == (len(sizes), 1, *expected) and batch.image_sizes == list(sizes)
    for image, room in zip(one, batch.tensors, strict=True):
        torch.testing.assert_close(room[:, : image.shape[1], : image.shape[2]], image)
        assert room.abs().sum().item() == pytest.approx(image.abs().sum().item(), rel=1e-5)


def test_anchors_stand_on_the_cells_of_every_map():
    """torchvision takes an image's side over a map's for the distance of anchors, which must be the map's stride."""
    model = detector()
    batch, maps = model._maps(images((96, 160)))
    anchors = model.rpn.anchor_generator(batch, list(maps.values()))[0]
    first = 0
    for map_BChw, stride in zip(maps.values(), (4, 8, 16, 32, 64), strict=True):
        height, width = map_BChw.shape[2:]
        centres = (
            anchors[first : first + 3 * height * width, :2] + anchors[first : first + 3 * height * width, 2:]
        ) / 2
        rows = centres.reshape(height, width, 3, 2)[:, :, 0]
        assert rows[-1, -1].tolist() == [stride * (width - 1), stride * (height - 1)]
        first += 3 * height * width


def test_finds_in_pixels_of_the_sizes_asked_for():
    model = detector().eval()
    for predictor in model.roi_heads.box_predictor:
        nn.init.constant_(predictor.classifier.bias, 1.0)  # everything is something
    picture = images((40, 60))
    small, large = model(picture)[0], model.detect(picture, [(80, 180)])[0]
    count = len(small.labels)
    assert 0 < count <= 100 and set(small.labels.tolist()) <= {0, 1}
    assert small.masks.shape == (count, 40, 60) and small.masks.dtype == torch.bool
    assert large.masks.shape == (count, 80, 180)
    assert small.boxes.min() >= 0 and (small.boxes.amax(0)[2:] <= torch.tensor([60, 40])).all()
    torch.testing.assert_close(large.boxes, small.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert not small.boxes.requires_grad


def test_a_detection_is_scaled_to_another_size():
    box, full = torch.tensor([[10.0, 10.0, 20.0, 20.0]]), torch.ones(1, 28, 28)
    found = Detections(box, torch.tensor([0.9]), torch.tensor([0]), full)
    ours = at_size(found, seen=(40, 60), size=(20, 120))
    assert ours.boxes.tolist() == [[20.0, 5.0, 40.0, 10.0]] and ours.labels.tolist() == [0]
    assert ours.masks.sum() == 20 * 5 and ours.masks[0, 5:10, 20:40].all()


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ([2.0, 3.0, 10.0, 8.0], (3, 8), (2, 10)),
        ([0.0, 0.0, 30.0, 20.0], (0, 20), (0, 30)),
        ([2.4, 3.0, 10.6, 8.0], (3, 8), (2, 11)),  # pixels whose centre is inside
        ([2.6, 3.0, 10.4, 8.0], (3, 8), (3, 10)),
    ],
)
def test_a_full_mask_fills_its_box(box: list[float], rows: tuple[int, int], columns: tuple[int, int]):
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(masks_in_image(torch.ones(1, 28, 28), torch.tensor([box]), (20, 30))[0], expected)


def test_the_left_half_of_a_mask_fills_the_left_half_of_its_box():
    mask = torch.zeros(1, 28, 28)
    mask[:, :, :14] = 1
    drawn = masks_in_image(mask, torch.tensor([[4.0, 2.0, 24.0, 10.0]]), (20, 30))[0]
    assert drawn.nonzero().aminmax(dim=0).max.tolist() == [9, 13] and drawn.sum() == 8 * 10


def test_nothing_is_pasted_outside_the_image():
    assert not masks_in_image(torch.ones(1, 28, 28), torch.tensor([[30.0, 20.0, 30.0, 20.0]]), (20, 30)).any()
    assert masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), (20, 30)).shape == (0, 20, 30)


@pytest.mark.parametrize(
    "side, expected", [(1024, [32, 64, 128, 256, 512]), (512, [16, 32, 64, 128, 256]), (128, [8, 16, 32, 64, 128])]
)
def test_anchors_shrink_with_the_canvas(side: int, expected: list[int]):
    assert anchor_sizes(side, (4, 8, 16, 32, 64)) == expected
    assert anchor_sizes(4 * 1024, (4,)) == [32]


def test_masks_are_put_into_the_image_with_one_wait_for_the_device(monkeypatch):
    """However many objects there are: each reading of a tensor on the host waits for all that the device has to do."""
    waits, tolist = [], Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: waits.append(1) or tolist(tensor))
    masks_in_image(torch.ones(7, 28, 28), torch.tensor([[2.0, 3.0, 10.0, 8.0]] * 7), (20, 30))
    assert len(waits) == 1


def test_boxes_without_an_area_are_named():
    with pytest.raises(ValueError, match=r"image 1 .*\[5.0, 5.0, 5.0, 9.0\]: expected x1 < x2"):
        detector()(images(SIZE, SIZE), [target(TWO, [0, 1]), target([[5.0, 5.0, 5.0, 9.0]], [0])])


def test_training_and_detecting_are_not_mixed_up():
    with pytest.raises(ValueError, match="needs targets"):
        detector()(images(SIZE))
    with pytest.raises(ValueError, match=r"eval\(\)"):
        detector().detect(images(SIZE), [SIZE])


@pytest.mark.parametrize(
    "wrong, words", [({"head": "yolo"}, "cascade or rcnn"), ({"classes": 0}, "at least 1"), ({"width": 0}, "width 0")]
)
def test_arguments_out_of_range_are_refused(wrong: dict, words: str):
    with pytest.raises(ValueError, match=words):
        create_detector("vim_nano_patch4_32", **{"classes": 2, "size": SIZE, "masks": False, **wrong})


@pytest.mark.parametrize("name, norm", [("vim_nano_patch4_32", False), ("resnet18", True)])
def test_backbones_by_name(name: str, norm: bool):
    model = create_detector(name, "rcnn", classes=2, channels=1, size=SIZE, masks=False, width=16)
    assert (model.backbone.fpn is not None) == norm
    sum(model(images(SIZE, SIZE), [target(TWO, [0, 1]), target([], [])]).values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        found = model.eval()(images((50, 70)))
    assert found[0].masks is None


@pytest.mark.slow
def test_learns_images_by_heart():
    """Bright squares and dark bars: after 80 steps on three images both are found, and their masks."""
    pytest.importorskip("faster_coco_eval")
    from longvision.metrics.average_precision import CocoAveragePrecision

    places = [[(6, 8, 26, 28), (30, 40, 60, 50)], [(36, 4, 58, 26)], []]
    labels: list[list[int]] = [[0, 1], [0], []]
    pictures, truth = [], []
    for boxes, names in zip(places, labels, strict=True):
        picture = torch.zeros(1, *SIZE)
        for (x1, y1, x2, y2), label in zip(boxes, names, strict=True):
            picture[:, y1:y2, x1:x2] = 1 - 2 * label
        pictures.append(picture)
        truth.append(target(list(boxes), names))
    model = detector()
    optimiser = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=80)
    for _ in range(80):
        loss = sum(model(pictures, truth).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    metric = CocoAveragePrecision(2, masks=True)
    metric.update(model.eval()(pictures), truth)
    metrics = metric.compute()
    assert metrics["box_ap50"] > 0.8 and metrics["mask_ap50"] > 0.8
