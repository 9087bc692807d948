"""Tasks that find objects: what is summed, measured and refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("faster_coco_eval")
pytest.importorskip("transformers")
from longvision.errors import UserError
from longvision.heads import detr as heads_detr
from longvision.tasks.config import DetectionConfig, DetrConfig
from longvision.tasks.detection import Detection
from longvision.tasks.detr import DetrDetection
from longvision.types import DataInfo, Detections, Target

SMALL = {"depth": 1, "embed_dim": 16}
EMPTY = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0).bool())


def detection(masks=False, **options):
    config = DetectionConfig(**{"name": "vim_nano_patch4_32", "args": SMALL, "width": 16, **options})
    return heard(Detection(config, DataInfo("set", ["a", "b"], (32, 32), has_masks=masks)))


def detr(name="vim_nano_patch4_32", args=SMALL, **options):
    config = DetrConfig(**{"name": name, "args": args, "queries": 4, "width": 16, "layers": 1, **options})
    return heard(DetrDetection(config, DataInfo("set", ["a", "b"], (32, 32), has_masks=True)))


def heard(task):
    task.logged = {}
    task.log = lambda name, value, **_: task.logged.update({name: float(value)})
    task.log_dict = lambda values, **_: task.logged.update({name: float(value) for name, value in values.items()})
    task._trainer = SimpleNamespace(global_step=7)
    return task


def target(*boxes, **more):
    count = len(boxes)
    labels, crowd = torch.arange(count), torch.zeros(count, dtype=torch.bool)
    return Target(torch.tensor(boxes).float().reshape(-1, 4), labels, crowd, **more)


def test_the_loss_is_the_sum_of_all_losses(monkeypatch):
    task = detection()
    monkeypatch.setattr(task.model, "forward", lambda images, targets: {"x": torch.tensor(1.0), "y": torch.tensor(2.5)})
    assert float(task.training_step(([torch.zeros(3, 8, 8)], [EMPTY]), 0)) == 3.5
    assert task.logged == {"train/loss": 3.5, "train/loss_step": 3.5, "train/x": 1.0, "train/y": 2.5}


@pytest.mark.parametrize("make", [detection, detr])
def test_a_image_without_objects_trains(make):
    loss = make().train().training_step(([torch.randn(3, 32, 32)], [EMPTY]), 0)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("make", [detection, detr])
def test_metrics_are_those_of_the_answers_in_the_image_s_pixels(make, monkeypatch):
    """One object found exactly, one of two classes missed: AP 1 for the first, 0 for the second."""
    task = make()
    sizes = []

    def answer(images, asked):
        sizes.extend(asked)
        return [Detections(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([0.9]), torch.tensor([0]))]

    monkeypatch.setattr(task, "detect", answer)
    both = target([1, 2, 30, 40], [50, 50, 60, 60], size=(64, 100))
    task.validation_step(([torch.zeros(3, 32, 50)], [both]), 0)
    task.on_validation_epoch_end()
    assert sizes == [(64, 100)]
    assert task.logged["val/box_ap"] == pytest.approx(0.5)
    assert task.by_class["box AP"] == pytest.approx([1.0, 0.0])


def test_detr_refuses_a_resnet_without_weights():
    task = detr("resnet10t", {})
    with pytest.raises(UserError, match=r"resnet10t .*--model\.pretrained"):
        task.on_fit_start()
    detr().on_fit_start()  # nothing of a Vim is frozen
    task.config = replace(task.config, pretrained=True)
    task.on_fit_start()


def test_detr_refuses_frozen_norms_without_weights():
    with pytest.raises(UserError, match="efficientnet_b0"):
        detr("efficientnet_b0", {}).on_fit_start()


def test_detr_learns_positions_in_the_image_without_its_padding(monkeypatch):
    """In training as in evaluation: a box in an image of 2:1 is relative to the image, not to the square canvas."""
    task, shapes, given = detr(), [], []
    decode = task.model.decode
    monkeypatch.setattr(task.model, "decode", lambda images: shapes.append(images[0].shape) or decode(images))
    monkeypatch.setattr(heads_detr, "set_losses", lambda *rest: given.append(rest[-1]) or {"x": rest[1].sum()})
    task.training_step(([torch.zeros(3, 32, 32)], [target([0, 0, 16, 8], size=(16, 32))]), 0)
    assert shapes == [(3, 16, 32)]
    assert given[0][0].tolist() == [[0.25, 0.25, 0.5, 0.5]]


def test_detr_s_backbone_has_a_rate_of_its_own():
    task = detr(lr=0.1, backbone_lr=0.25)
    task._trainer = SimpleNamespace(estimated_stepping_batches=10, num_training_batches=10, accumulate_grad_batches=1)
    optimizer = task.configure_optimizers()["optimizer"]
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    inside = {id(p) for p in task.model.backbone.parameters()}
    assert all(rates[p] == pytest.approx(0.025) for p in inside)
    assert all(rate == pytest.approx(0.1) for p, rate in rates.items() if p not in inside)
    assert len(rates) == len(list(task.model.parameters()))


def test_detr_s_dropout_is_the_one_asked_for():
    layer = detr(dropout=0.25).model.model.model.decoder.layers[0]
    assert layer.dropout == layer.mlp.dropout == layer.encoder_attn.attention_dropout == 0.25


def test_masks_are_learned_where_the_data_has_them():
    with_masks, without = detection(masks=True), detection()
    assert "mask" in "".join(name for name, _ in with_masks.model.named_parameters())
    assert sum(p.numel() for p in without.parameters()) < sum(p.numel() for p in with_masks.parameters())
