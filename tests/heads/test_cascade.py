"""Cascade R-CNN's stages: targets, losses, scores and boxes by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision")
from longvision.heads.cascade import CASCADE, CascadeRoIHeads, LevelPool, assign_to_objects, cut_masks
from longvision.types import Target

STRIDES = (4, 8, 16, 32)
SIZE = (128, 128)
OBJECT = [0.0, 0.0, 100.0, 100.0]
# With the object, from which they differ in their width only, they have an IoU of 0.55, 0.65 and 0.75.
NEAR = [[0.0, 0.0, 55.0, 100.0], [0.0, 0.0, 65.0, 100.0], [0.0, 0.0, 75.0, 100.0]]
FAR = [110.0, 110.0, 120.0, 120.0]


def heads(classes: int = 2, masks: bool = False, stages=CASCADE, channels: int = 8) -> CascadeRoIHeads:
    return CascadeRoIHeads(classes, channels, STRIDES, masks, stages)


def maps(images: int = 1, channels: int = 8, grad: bool = False) -> dict[str, Tensor]:
    sides = [SIZE[0] // stride for stride in STRIDES]
    return {str(i): torch.randn(images, channels, side, side, requires_grad=grad) for i, side in enumerate(sides)}


def target(boxes: list, labels: list[int], masks: bool = True) -> Target:
    boxes_n4 = torch.tensor(boxes).reshape(-1, 4)
    full = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(full, boxes_n4.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return Target(boxes_n4, torch.tensor(labels, dtype=torch.long), torch.zeros(len(boxes)).bool(), full)


def constant(roi_heads: CascadeRoIHeads, stage: int, logits: list[float], deltas: list[float]) -> None:
    """Let a stage answer the same to every box."""
    predictor = roi_heads.box_predictor[stage]
    for layer, bias in ((predictor.classifier, logits), (predictor.regression, deltas)):
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.tensor(bias)


def smooth_l1(x: float) -> float:
    return 0.5 * 9 * x * x if abs(x) < 1 / 9 else abs(x) - 0.5 / 9


def test_a_stage_calls_what_overlaps_enough_its_object():
    boxes = torch.tensor([*NEAR, FAR])
    truth = target([[110.0, 0.0, 120.0, 9.0], OBJECT], [0, 1])
    labels = {stage.iou: assign_to_objects(boxes, truth, stage.iou) for stage in CASCADE}
    assert labels[0.5][1].tolist() == [2, 2, 2, 0]
    assert labels[0.6][1].tolist() == [0, 2, 2, 0]
    assert labels[0.7][1].tolist() == [0, 0, 2, 0]
    assert labels[0.7][0][:3].tolist() == [1, 1, 1]


def test_an_iou_of_exactly_the_threshold_is_the_object():
    assert assign_to_objects(torch.tensor([[0.0, 0.0, 50.0, 100.0]]), target([OBJECT], [0]), 0.5)[1].tolist() == [1]


def test_losses_of_every_stage_are_those_of_its_threshold_and_weights():
    """Boxes that no stage moves, and one that says 3/4 object: the losses count who is an object, and how far off."""
    cascade = heads(classes=1)
    for i in range(3):
        constant(cascade, i, [0.0, math.log(3)], [0.0] * 4)
    _, losses = cascade(maps(), [torch.tensor([*NEAR, FAR])], [SIZE], [target([OBJECT], [0])])
    for i, (widths, weight) in enumerate([((55, 65, 75), 10), ((65, 75), 20), ((75,), 30)]):
        objects = len(widths) + 1  # the true box is among the proposals
        classifier = (objects * -math.log(3 / 4) + (5 - objects) * -math.log(1 / 4)) / 5
        regression = sum(
            smooth_l1(weight * (50 - w / 2) / w) + smooth_l1(weight / 2 * math.log(100 / w)) for w in widths
        )
        assert losses[f"loss_classifier_{i + 1}"].item() == pytest.approx(classifier, rel=1e-5)
        assert losses[f"loss_box_reg_{i + 1}"].item() == pytest.approx(regression / 5, rel=1e-5)


def test_a_stage_learns_on_the_boxes_that_the_one_before_refined_and_clipped():
    cascade = heads(classes=1)
    constant(cascade, 0, [0.0, 0.0], [-1.0, 0.0, 0.0, 0.0])  # a tenth of the width to the left
    for i in (1, 2):
        constant(cascade, i, [0.0, 0.0], [0.0] * 4)
    _, losses = cascade(maps(), [torch.tensor([[10.0, 0.0, 110.0, 100.0]])], [SIZE], [target([OBJECT], [0])])
    # (10, 110) became the object. The true box became (-10, 90), clipped (0, 90).
    wanted = smooth_l1(20 * 5 / 90) + smooth_l1(10 * math.log(100 / 90))
    assert losses["loss_box_reg_2"].item() == pytest.approx(wanted / 2, rel=1e-4)


def test_no_gradient_flows_through_the_refined_boxes():
    cascade = heads(classes=1)
    features = maps(grad=True)
    _, losses = cascade(features, [torch.tensor(NEAR)], [SIZE], [target([OBJECT], [0])])
    losses["loss_box_reg_2"].backward()
    assert cascade.box_predictor[0].regression.weight.grad is None


def test_maps_learn_as_fast_as_from_one_stage():
    """Three stages of the same weights that agree on every box: the maps' gradient is one stage's."""
    cascade, single = heads(), heads(stages=CASCADE[:1])
    for i in range(3):
        constant(cascade, i, [0.0] * 3, [0.0] * 4)
        cascade.box_head[i].load_state_dict(cascade.box_head[0].state_dict())
        weight = torch.linspace(-1, 1, cascade.box_predictor[0].classifier.weight.numel())
        cascade.box_predictor[i].classifier.weight.data = weight.view(3, -1)
    single.box_head[0].load_state_dict(cascade.box_head[0].state_dict())
    single.box_predictor[0].load_state_dict(cascade.box_predictor[0].state_dict())
    gradients = []
    for roi_heads in (cascade, single):
        torch.manual_seed(0)
        features = maps(grad=True)
        _, losses = roi_heads(features, [torch.tensor([*NEAR, FAR])], [SIZE], [target([], [])])
        sum(losses.values()).backward()
        gradients.append(features["0"].grad)
    assert gradients[1].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_the_score_is_the_mean_over_stages_and_the_box_the_last_ones():
    cascade = heads(classes=2).eval()
    logits = [[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 3.0, 0.0]]
    for i in range(3):  # each moves by a tenth of the width, 2 pixels: 1/10, 2/20, 3/30
        constant(cascade, i, logits[i], [float(i + 1), 0.0, 0.0, 0.0])
    found, losses = cascade(maps(), [torch.tensor([[20.0, 20.0, 40.0, 60.0]])], [SIZE])
    mean = torch.tensor(logits).softmax(1).mean(0)
    assert not losses
    assert found[0].labels.tolist() == [0, 1]  # one box may be of two classes, the surer first
    torch.testing.assert_close(found[0].scores, mean[1:])
    torch.testing.assert_close(found[0].boxes, torch.tensor([[26.0, 20.0, 46.0, 60.0]] * 2))


def test_boxes_that_overlap_are_one_and_an_image_has_at_most_a_hundred():
    cascade = heads(classes=1).eval()
    for i in range(3):
        constant(cascade, i, [0.0, 1.0], [0.0] * 4)
    twice = torch.tensor([[10.0, 10.0, 30.0, 30.0], [11.0, 10.0, 31.0, 30.0], [60.0, 60.0, 80.0, 80.0]])
    x, y = torch.meshgrid(torch.arange(12) * 10.0, torch.arange(12) * 10.0, indexing="ij")
    grid = torch.stack([x, y, x + 9, y + 9], 2).view(-1, 4)
    found, _ = cascade(maps(2), [twice, grid], [SIZE, SIZE])
    assert [len(one.boxes) for one in found] == [2, 100]


@pytest.mark.parametrize("proposals", [4, 0])
@pytest.mark.parametrize("objects", [2, 0])
@pytest.mark.parametrize("masks", [True, False])
def test_every_parameter_gets_a_finite_gradient(proposals: int, objects: int, masks: bool):
    cascade = heads(masks=masks)
    boxes = [torch.tensor([*NEAR, FAR])[:proposals], torch.zeros(0, 4)]
    truth = [target([OBJECT, FAR][:objects], [0, 1][:objects]), target([], [])]
    _, losses = cascade(maps(2), boxes, [SIZE, SIZE], truth)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [name for name, p in cascade.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert ("loss_mask" in losses) == masks


def test_losses_and_boxes_are_float32_under_autocast():
    cascade = heads(masks=True)
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = cascade(maps(), [torch.tensor([*NEAR, FAR])], [SIZE], [target([OBJECT], [0])])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in cascade.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, _ = cascade.eval()(maps(), [torch.tensor([*NEAR, FAR])], [SIZE])
    assert found[0].boxes.dtype == found[0].scores.dtype == found[0].masks.dtype == torch.float32


def test_no_proposals_no_objects():
    found, _ = heads(masks=True).eval()(maps(), [torch.zeros(0, 4)], [SIZE])
    shapes = [tuple(value.shape) for value in (found[0].boxes, found[0].scores, found[0].labels, found[0].masks)]
    assert shapes == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_a_mask_is_learned_and_drawn_by_its_own_class():
    roi_heads = heads(masks=True)
    last = roi_heads.mask_predictor.mask_fcn_logits
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([-4.0, 1.0])
    _, losses = roi_heads(maps(), [torch.tensor([OBJECT])], [SIZE], [target([OBJECT], [1])])
    # All of the box is object, but for the outermost samples, which reach half a pixel over its edge.
    assert losses["loss_mask"].item() == pytest.approx(math.log(1 + math.exp(-1)), abs=2e-3)
    for i in range(3):
        constant(roi_heads, i, [0.0, 0.0, 5.0], [0.0] * 4)
    found, _ = roi_heads.eval()(maps(), [torch.tensor([OBJECT])], [SIZE])
    assert found[0].labels.tolist() == [1]
    torch.testing.assert_close(found[0].masks, torch.tensor(1.0).sigmoid().expand(1, 28, 28))


def test_masks_are_learned_on_the_first_stages_sample():
    """A box that is an object to the first stage only has a mask to learn."""
    roi_heads = heads(masks=True)
    seen = []
    roi_heads.mask_roi_pool.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1]))
    roi_heads(maps(), [torch.tensor([*NEAR, FAR])], [SIZE], [target([OBJECT], [0])])
    assert seen[0].tolist() == [*NEAR, OBJECT]


def test_one_stage_is_faster_rcnn():
    _, losses = heads(stages=CASCADE[:1])(maps(), [torch.tensor(NEAR)], [SIZE], [target([OBJECT], [0])])
    assert set(losses) == {"loss_classifier_1", "loss_box_reg_1"}


def test_a_box_comes_from_the_map_that_suits_its_size():
    sides = torch.tensor([1.0, 111.0, 112.0, 223.0, 224.0, 448.0, 2000.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert LevelPool(STRIDES, 7).levels(boxes).tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("box", [[8.0, 8.0, 40.0, 24.0], [10.0, 6.0, 130.0, 150.0]])
def test_pooling_reads_a_map_where_the_box_is(box: list[float]):
    """Maps that hold the position of their cells' centres in pixels: a pool of 1 is the box's centre."""
    pictures = []
    for stride in STRIDES:
        centre = (torch.arange(256 // stride) + 0.5) * stride
        pictures.append(torch.stack(torch.meshgrid(centre, centre, indexing="xy"))[None])
    pooled = LevelPool(STRIDES, 1)(pictures, [torch.tensor([box])])
    torch.testing.assert_close(pooled.flatten(), torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]))


def test_pooling_takes_each_images_own_map():
    features = [torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 128 // s, 128 // s) for s in STRIDES]
    pooled = LevelPool(STRIDES, 1)(features, [torch.tensor([OBJECT]), torch.tensor([OBJECT, FAR])])
    assert pooled.flatten().tolist() == [1.0, 2.0, 2.0]


def test_a_mask_is_cut_to_its_box():
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[1, :, 32:] = True
    cut = cut_masks(mask, torch.tensor([[24.0, 0.0, 40.0, 16.0]]), torch.tensor([1]), 4)
    assert cut.shape == (1, 4, 4)
    torch.testing.assert_close(cut[0], torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, 4), atol=0.13, rtol=0)
    assert cut[0, :, 1].max() < 0.5 < cut[0, :, 2].min()
