"""A round in a process of its own, and every way in which it can end."""

import sys
import time

import pytest
import torch

from longvision.benchmark import models
from longvision.benchmark.build import Step, attention
from longvision.benchmark.case import Round
from longvision.benchmark.models import launch
from longvision.benchmark.worker import run_round

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and marks are Linux's")


@linux
def test_a_round_is_measured(case):
    done = launch(case(mode="train"), share=0.2, patience=60)
    assert done.status == "ok"
    assert done.seconds and all(0 < seconds < 60 for seconds in done.seconds)
    assert done.spent >= sum(done.seconds)
    # Gradients count: all weights of the model, 0.37 M of four bytes.
    weights = sum(p.numel() for p in Step(case()).model.parameters())
    assert 4 * weights < done.peak_bytes < 40 * 4 * weights
    assert (done.attention, done.threads) == ("sdpa", 1)


@linux
def test_out_of_memory_is_an_answer(case):
    small = case(model="deit_tiny_patch16_224", variant="materialised", size=768)
    # 2305 tokens: a matrix of attention for three heads takes 64 MB, its softmax another.
    assert launch(small, 0.1, 60, memory_limit=100 * 2**20).status == "out of memory"


def test_a_call_that_takes_too_long_is_ended(case):
    start = time.monotonic()
    long = case(model="vit_large_patch16_224", size=512, batch=8)  # some 1,500 GMACs: a minute
    done = launch(long, 0.1, patience=0.5)
    assert done == Round("over budget: no call in 0.5 s", spent=0.5)
    assert time.monotonic() - start < 50


@pytest.mark.parametrize(
    "program, status",
    [
        ("import os; os.kill(os.getpid(), 9)", "killed (signal 9): probably out of memory"),
        ("import os; os.kill(os.getpid(), 6)", "killed (signal 6): probably out of memory"),
        ("import os; os.kill(os.getpid(), 15)", "killed (signal 15)"),
        ("print(3); raise ValueError('three')", "failed: ValueError: three"),
        ("import os; os._exit(3)", "failed: exit code 3"),
        ("pass", "failed: the worker ended without an answer"),
        ("print('Bye.')", "failed: the worker ended without an answer"),
        ("print(3)", "failed: the worker ended without an answer"),
    ],
)
def test_a_process_that_dies_is_a_row(case, monkeypatch, program, status):
    monkeypatch.setattr(models, "WORKER", [sys.executable, "-c", f"import sys; sys.stdin.read(); {program}"])
    assert launch(case(), 1, 1).status == status


def test_a_size_that_a_model_refuses_is_an_answer(case):
    done = run_round(case(model="vim_nano_patch4_32", size=30), 0.1, 60, measure_memory=False)
    assert done.status.startswith("refused: image 30x30 does not divide into patches of 4")


def test_one_sample_where_the_first_call_took_the_share(case):
    done = run_round(case(), share=1e-9, patience=60, measure_memory=True)
    assert len(done.seconds) == 1 and done.first_call
    assert done.spent == done.seconds[0]


def test_memory_is_measured_where_asked(case):
    assert run_round(case(), 0.1, 60, measure_memory=False).peak_bytes is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["test_vit", "vim_nano_patch4_32", "test_resnet", "deit_tiny_distilled_patch16_224"])
def test_training_makes_every_gradient(case, name, dtype):
    step = Step(case(model=name, mode="train", dtype=dtype, size=64))
    step()
    assert step.model.training
    assert all(p.grad is not None and p.dtype == torch.float32 for p in step.model.parameters())
    step.clear()
    assert all(p.grad is None for p in step.model.parameters())


def test_inference_keeps_no_graph(case):
    step = Step(case())
    seen = []
    step.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step()
    assert not step.model.training
    assert seen[0].is_inference()


def test_bfloat16_is_taken_by_autocast(case):
    step = Step(case(dtype="bfloat16"))
    seen = []
    step.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step()
    assert seen[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["test_vit", "vim_nano_patch4_32", "test_resnet"])
def test_float64_is_of_the_whole_model(case, name):
    step = Step(case(model=name, mode="train", dtype="float64"))
    seen = []
    step.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step()
    assert seen[0].dtype == torch.float64
    assert all(p.dtype == p.grad.dtype == torch.float64 for p in step.model.parameters())


def test_forms_of_attention(case, monkeypatch):
    calls = []
    true_form = torch.nn.functional.scaled_dot_product_attention

    def spy(*arguments, **options):
        calls.append(1)
        return true_form(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    fused, plain = Step(case()), Step(case(variant="materialised"))
    fused()
    assert calls
    calls.clear()
    plain()
    assert not calls
    assert (fused.attention, plain.attention) == ("sdpa", "materialised")
    plain.model.load_state_dict(fused.model.state_dict())
    with torch.no_grad():
        assert torch.allclose(fused.model(fused.images_BCHW), plain.model(fused.images_BCHW), atol=1e-5)


def test_the_scan_s_backend_is_named(case, monkeypatch):
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "chunked")
    vim = case(model="vim_nano_patch4_32")
    assert Step(vim).attention == "scan: chunked"
    resnet = case(model="test_resnet")
    assert attention(Step(resnet).model, resnet) == ""


@linux
def test_checkpointing_takes_less_memory(case):
    vim = dict(model="vim_tiny_patch16_224", mode="train", size=224)
    kept, recomputed = (
        run_round(case(**vim, variant=variant), 0.01, 60, measure_memory=True).peak_bytes
        for variant in ("", "checkpoint")
    )
    assert recomputed < 0.7 * kept


HEADS = ["fpn", "cascade"]


@pytest.fixture
def with_head(case):
    """with_head(head, mode="train") -> a Case, where the head's library is there."""

    def make(head, **changes):
        if head == "fpn":
            pytest.importorskip("segmentation_models_pytorch")
        return case(**{"model": "vim_nano_patch4_32", "batch": 1, "head": head, **changes})

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["vim_nano_patch4_32", "deit_tiny_patch16_224", "resnet10t"])
def test_training_under_a_head_makes_every_gradient(with_head, head, name, dtype):
    step = Step(with_head(head, model=name, mode="train", dtype=dtype, size=64))
    step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in step.model.parameters())
    assert next(step.model.backbone.parameters()).grad.any()


def test_a_segmenter_s_answer_is_of_every_pixel(with_head):
    step = Step(with_head("fpn", batch=2, size=52))
    seen = []
    step.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step()
    assert seen[0].shape == (2, 150, 52, 52) and seen[0].is_inference()


def test_a_detector_finds_as_many_objects_with_masks_as_it_may(with_head):
    """With the usual threshold random weights find none, and masks would not be measured."""
    step = Step(with_head("cascade", batch=2, size=64))
    seen = []
    step.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step()
    assert [found.masks.shape for found in seen[0]] == [(100, 64, 64)] * 2


def test_a_detector_learns_seven_boxes_an_image_that_their_masks_fill(with_head):
    one, two = (Step(with_head("cascade", mode="train", batch=2, size=96)) for _ in range(2))
    images, targets = one.inputs
    assert len(images) == len(targets) == 2
    for target, same in zip(targets, two.inputs[1], strict=True):
        boxes = target.boxes
        assert boxes.shape == (7, 4) and torch.equal(boxes, same.boxes)
        assert (boxes >= 0).all() and (boxes <= 96).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (sides >= 96 / 8 - 1e-4).all() and (sides <= 96 / 2 + 1e-4).all()
        for (x1, y1, x2, y2), mask in zip(boxes.round().int().tolist(), target.masks, strict=True):
            assert mask[y1:y2, x1:x2].all() and mask.sum() == (y2 - y1) * (x2 - x1)


@pytest.mark.parametrize("head", HEADS)
def test_forms_reach_the_backbone_under_a_head(with_head, head):
    step = Step(with_head(head, model="deit_tiny_patch16_224", variant="materialised"))
    assert step.attention == "materialised"
    assert Step(with_head(head)).attention.startswith("scan: ")
    step = Step(with_head(head, mode="train", variant="checkpoint"))
    assert [module.grad_checkpointing for module in step.model.modules() if hasattr(module, "grad_checkpointing")] == [
        True
    ]


@pytest.mark.parametrize("name", ["vim_nano_patch4_32", "deit_tiny_patch16_224"])
def test_checkpointing_keeps_less_of_a_backbone_under_a_head(with_head, name):
    def kept(variant):
        step = Step(with_head("cascade", model=name, mode="train", variant=variant))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(1) or x, lambda x: x):
            step.model.backbone.body(step.images_BCHW)
        return len(kept)

    assert kept("checkpoint") < 0.5 * kept("")
