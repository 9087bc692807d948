"""Losses, metrics and rates of the segmentation task against numbers worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("segmentation_models_pytorch")
from lightning import Trainer
from torch.utils.data import DataLoader

from longvision.data.config import ScatteredSegmentationData
from longvision.data.order import EpochOrder
from longvision.errors import UserError
from longvision.inference.config import InferenceConfig
from longvision.tasks.config import SegmentationConfig
from longvision.tasks.segmentation import Segmentation, pixel_loss
from longvision.types import DataInfo

SMALL = {"depth": 1, "embed_dim": 16}


def make(classes=2, **options):
    config = SegmentationConfig(**{"name": "vim_nano_patch4_32", "args": SMALL, "width": 64, "head": "fpn", **options})
    task = Segmentation(config, DataInfo("set", [f"c{i}" for i in range(classes)], (8, 8)))
    task.logged = {}
    task.log = lambda name, value, **_: task.logged.setdefault(name, []).append(float(value))
    task.log_dict = lambda values, **_: task.logged.update({name: float(value) for name, value in values.items()})
    task._trainer = SimpleNamespace(global_step=7)
    return task


def test_the_loss_is_the_mean_over_pixels_that_count():
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 0, 0, 0] = math.log(3)  # 3/4 for class 0
    mask = torch.tensor([[[0, 1, 255]]])
    assert float(pixel_loss(logits, mask)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_an_image_of_which_nothing_counts_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert float(loss) == 0 and (logits.grad == 0).all()


def trainer(**options):
    return Trainer(
        max_epochs=1, accelerator="cpu", num_sanity_val_steps=0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def batches(*masks, count=1):
    """So many images a mask, a batch each."""
    pairs = [([torch.randn(3, *mask.shape)] * count, [mask] * count) for mask in masks]
    return DataLoader(pairs, batch_size=None)


def real(**options):
    config = SegmentationConfig(name="vim_nano_patch4_32", args=SMALL, width=64, head="fpn", auxiliary=0, **options)
    return Segmentation(config, DataInfo("set", ["a", "b"], (8, 8)))


LARGE, NOTHING, ONES = torch.full((64, 64), 255), torch.full((8, 8), 255), torch.ones(8, 8, dtype=torch.long)


@pytest.mark.filterwarnings("ignore:.*DataLoader|.*number of training batches|.*num_workers")
def test_an_epoch_of_which_nothing_counts_has_a_loss_of_zero():
    fitted = trainer()
    fitted.fit(real(), batches(LARGE, LARGE, count=2), batches(LARGE, LARGE))
    assert [float(fitted.callback_metrics[f"{split}/loss"]) for split in ("train", "val")] == [0, 0]


@pytest.mark.filterwarnings("ignore:.*DataLoader|.*num_workers")
def test_images_of_which_nothing_counts_leave_the_loss_of_a_split_as_it_is(monkeypatch):
    """log 2 in one pixel, log 4 in 64: not their mean, and no part of the two zeros."""
    task, one = real(), NOTHING.clone()
    one[3, 4] = 1
    shares = iter([torch.tensor([1 - p, p])[:, None, None] for p in (0.5, 0.5, 0.25, 0.5)])
    monkeypatch.setattr(task, "probabilities", lambda image, size: next(shares).expand(2, *size))
    (logged,) = trainer().validate(task, batches(NOTHING, one, ONES, NOTHING), verbose=False)
    assert logged["val/loss"] == pytest.approx((math.log(2) + 64 * math.log(4)) / 65, rel=1e-6)
    assert task.evaluated == 4


def test_the_auxiliary_loss_weighs_what_it_is_told(monkeypatch):
    task = make(auxiliary=0.25)
    even = torch.zeros(1, 2, 2, 2, requires_grad=True)
    sure = even + torch.tensor([0.0, math.log(3)])[None, :, None, None]
    monkeypatch.setattr(task.model, "forward", lambda images: (even, sure))
    loss = task.training_step(([torch.zeros(3, 2, 2)], [torch.ones(2, 2, dtype=torch.long)]), 0)
    assert float(loss) == pytest.approx(math.log(2) + 0.25 * math.log(4 / 3))
    assert task.logged["train/loss"] == [pytest.approx(math.log(2))]  # what "val/loss" is too


def test_metrics_by_hand(monkeypatch):
    """Two images of different sizes: 6 pixels count; class 1 is right in 2 of a union of 4."""
    task = make()
    answers = [torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1], [0, 0]])]
    truths = [torch.tensor([[0, 1, 0]]), torch.tensor([[1, 255], [0, 1]])]
    shares = iter([torch.nn.functional.one_hot(answer, 2).permute(2, 0, 1).float() for answer in answers])
    monkeypatch.setattr(task, "probabilities", lambda image, size: next(shares))
    for truth in truths:
        task.validation_step(([torch.zeros(3, *truth.shape)], [truth]), 0)
    task.on_validation_epoch_end()
    # class 0: hit 2, missed 1 (called 1), taken from class 1: 1 -> 2/4; class 1: hit 2 of a union of 4
    assert task.logged["val/miou"] == pytest.approx(0.5)
    assert task.logged["val/pixel_accuracy"] == pytest.approx(4 / 6)
    assert task.logged["val/f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert task.by_class["IoU"] == pytest.approx([0.5, 0.5])
    assert task.class_table() == ["class       IoU        F1", "c0       50.0 %    66.7 %", "c1       50.0 %    66.7 %"]


def test_metrics_start_anew_with_each_epoch(monkeypatch):
    task = make()
    for right in (0, 1):
        monkeypatch.setattr(
            task, "probabilities", lambda image, size, right=right: torch.eye(2)[right][:, None, None].expand(2, *size)
        )
        task.validation_step(([torch.zeros(3, 2, 2)], [torch.ones(2, 2, dtype=torch.long)]), 0)
        task.on_validation_epoch_end()
        assert task.logged["val/pixel_accuracy"] == right


def test_images_are_evaluated_as_the_inference_config_says(monkeypatch):
    seen = []
    task = make(inference=InferenceConfig(window=8, scales=(1.0, 2.0), flip=True)).eval()
    monkeypatch.setattr(task.model, "forward", lambda x: seen.append(tuple(x.shape[2:])) or x[:, :2])
    shares = task.probabilities(torch.randn(3, 8, 10), (16, 20))
    assert shares.shape == (2, 16, 20)
    assert set(seen) == {(8, 8)}  # 8x10 in 1 x 2 windows, 16x20 in 3 x 4 of eight at a time: each mirrored too
    assert len(seen) == 2 * (1 + 2)


def test_the_rate_rises_over_the_warm_up_and_falls_to_zero():
    """Through Lightning, which knows the number of batches only once it has been asked for the number of steps."""
    data = ScatteredSegmentationData(size=32, pictures=32, batch_size=4, workers=0).build()
    config = SegmentationConfig(
        name="vim_nano_patch4_32", head="fpn", args=SMALL, width=64, lr=1.0, warmup_steps=3
    )  # fmt: skip
    task = Segmentation(config, data.info)
    rates = []
    task.on_before_optimizer_step = lambda optimizer: (
        rates.append(optimizer.param_groups[-1]["lr"]) or [parameter.grad.zero_() for parameter in task.parameters()]
    )
    trainer(limit_val_batches=0).fit(task, datamodule=data)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_upernet_refuses_batches_of_one():
    for head, batch_size in (("upernet", 2), ("fpn", 1)):
        task = make(head=head)
        data = SimpleNamespace(batch_size=batch_size, order=lambda: EpochOrder(2, 0))
        task._trainer = SimpleNamespace(datamodule=data)
        task.on_fit_start()
    task = make(head="upernet")
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=1))
    with pytest.raises(UserError, match=r"--data\.batch_size 1"):
        task.on_fit_start()


def test_the_loss_of_a_split_is_the_mean_over_its_pixels(monkeypatch):
    """Not over its images: one of 1 pixel beside one of 3, of which one is ignored."""
    task = make()
    weights = []
    task.log = lambda name, value, batch_size=None, **_: weights.append((name, float(value), int(batch_size)))
    monkeypatch.setattr(task, "probabilities", lambda image, size: torch.full((2, *size), 0.5))
    for truth in (torch.tensor([[0]]), torch.tensor([[1, 255, 0]])):
        task.validation_step(([torch.zeros(3, *truth.shape)], [truth]), 0)
    assert weights == [("val/loss", pytest.approx(math.log(2)), 1), ("val/loss", pytest.approx(math.log(2)), 2)]
