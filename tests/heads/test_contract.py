"""Every head that finds objects takes the same targets, and answers the same way in training and in evaluation."""

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("scipy")
from longvision.heads.detection import create_detector
from longvision.heads.detr import create_detr
from longvision.types import Detections, Target

SIZE = (64, 64)
SMALL = {"depth": 1, "embed_dim": 16}
BOXES = torch.tensor([[4.0, 4.0, 30.0, 40.0], [30.0, 20.0, 60.0, 60.0]])


def detector():
    return create_detector("vim_nano_patch4_32", "rcnn", classes=2, size=SIZE, masks=False, args=SMALL, width=16)


def detr():
    return create_detr("vim_nano_patch4_32", 2, 3, SIZE, args=SMALL, queries=5, width=16, layers=1)


def target(count=2, crowd=False):
    return Target(BOXES[:count], torch.arange(count), torch.tensor([False, crowd])[:count])


heads = pytest.mark.parametrize("make", [detector, detr])


@heads
def test_training_gives_losses_by_name(make):
    losses = make()([torch.randn(3, *SIZE)] * 2, [target(), target(0)])
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())


@heads
def test_training_needs_targets_and_gives_no_detections(make):
    model = make().train()
    with pytest.raises(ValueError, match="targets"):
        model([torch.randn(3, *SIZE)])
    with pytest.raises(ValueError, match=r"eval\(\)"):
        model.detect([torch.randn(3, *SIZE)], [SIZE])


@heads
def test_evaluation_gives_detections_in_pixels_of_the_images_or_of_the_sizes_asked_for(make):
    model, images = make().eval(), [torch.randn(3, 48, 64), torch.randn(3, *SIZE)]
    for part in model.modules():
        if hasattr(part, "score_thresh"):
            part.score_thresh = 0.0  # new weights are sure of nothing
    found, again = model(images), model.detect(images, [(48, 64), SIZE])
    larger = model.detect(images, [(96, 192), SIZE])
    assert len(found) == 2 and len(found[0]) > 0
    for one, same in zip(found, again, strict=True):
        assert isinstance(one, Detections) and not one.boxes.requires_grad
        assert torch.equal(one.boxes, same.boxes)  # and no dropout
        assert (one.scores.diff() <= 0).all() and one.labels.min() >= 0
        assert (one.boxes.dtype, one.scores.dtype, one.labels.dtype) == (torch.float32, torch.float32, torch.int64)
    torch.testing.assert_close(larger[0].boxes, found[0].boxes * torch.tensor([3.0, 2, 3, 2]), rtol=1e-4, atol=1e-3)


@heads
def test_crowds_are_not_learned(make):
    model, images = make(), [torch.randn(3, *SIZE)]
    losses = []
    for objects in (target(1), target(2, crowd=True), target(2)):
        torch.manual_seed(0)
        losses.append(sum(model(images, [objects]).values()))
    assert losses[0] == losses[1] != losses[2]
