"""What takes the maps of a VMamba: the heads of all tasks."""

import pytest
import torch

from longvision.models.backbone import create_features
from support.vmambas import BOTH, TINY


def check_backward(model, loss):
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@BOTH
def test_segmentation_models_pytorch(options):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.FPN("tu-vmamba_tiny_s1l8_224", encoder_weights=None, classes=5, **TINY_MAPS, **options)
    logits = model(torch.randn(2, 3, 96, 128))
    assert logits.shape == (2, 5, 96, 128)
    check_backward(model, logits.square().mean())


TINY_MAPS = {key: value for key, value in TINY.items() if key != "num_classes"}


@BOTH
def test_features_for_heads(options):
    """Maps of strides 4 to 32 without a pyramid."""
    model = create_features("vmamba_tiny_s1l8_224", 1, (64, 64), args={**TINY_MAPS, **options})
    assert model.feature_info.reduction() == [4, 8, 16, 32] and model.feature_info.channels() == [8, 16, 32, 64]
    maps = model(torch.randn(1, 1, 64, 96))
    assert [tuple(map_BCHW.shape[2:]) for map_BCHW in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert maps[0].is_contiguous(memory_format=torch.channels_last)


def scene():
    from longvision.types import Target

    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [30.0, 20.0, 60.0, 60.0]])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 4:40, 4:30] = masks[1, 20:60, 30:60] = True
    return [torch.randn(3, 64, 64)], [Target(boxes, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), masks)]


@pytest.mark.parametrize("head", ["upernet", "fpn", "cascade", "detr"])
def test_heads_of_all_tasks(head):
    """Every parameter gets a gradient."""
    pytest.importorskip("transformers")
    pytest.importorskip("scipy")
    pytest.importorskip("segmentation_models_pytorch")
    from longvision.heads.detection import create_detector
    from longvision.heads.detr import create_detr
    from longvision.heads.segmentation import create_segmenter

    name, args = "vmamba_tiny_s1l8_224", TINY_MAPS
    if head == "detr":
        model = create_detr(name, 2, 3, (64, 64), args=args, queries=5, width=16, layers=1)
    elif head == "cascade":
        model = create_detector(name, classes=2, size=(64, 64), masks=True, args=args, width=16)
    else:
        model = create_segmenter(name, head, 5, 3, (64, 64), args=args, width=64)
    if head in ("cascade", "detr"):
        return check_backward(model, sum(model(*scene()).values()))
    images = torch.randn(2, 3, 50, 70)
    logits, auxiliary = model(images)
    assert logits.shape == (2, 5, 50, 70)
    check_backward(model, logits.square().mean() + auxiliary.square().mean())
