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
