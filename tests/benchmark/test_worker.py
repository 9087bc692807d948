"""A round, in this process and in one of its own, and every way in which it can end."""

import sys
import threading

import pytest

from longvision.benchmark import models, worker
from longvision.benchmark.build import Step
from longvision.benchmark.case import Round
from longvision.benchmark.models import launch
from longvision.benchmark.worker import after, run_round

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and marks are Linux's")
NEVER = 1e6  # seconds of patience


@linux
def test_a_round_is_measured_in_a_process_of_its_own(case):
    done = launch(case(mode="train"), share=0.01, patience=NEVER)
    assert done.status == "ok"
    assert done.seconds and all(seconds > 0 for seconds in done.seconds) and done.spent >= sum(done.seconds)
    # Gradients count: all weights of the model, 0.37 M of four bytes.
    weights = sum(p.numel() for p in Step(case()).model.parameters())
    assert 4 * weights < done.peak_bytes < 40 * 4 * weights
    assert (done.attention, done.threads) == ("sdpa", 1)


def test_images_without_a_cell_are_refused_in_words(case):
    done = run_round(case(model="efficientvit_m0", size=8), share=0.01, patience=NEVER, measure_memory=False)
    assert done.status.startswith("refused: image 8x8 is smaller than a cell of efficientvit_m0's first map, 16 pixels")


@pytest.mark.slow
@linux
def test_out_of_memory_is_an_answer_and_costs_this_process_nothing(case):
    # 2305 tokens: a matrix of attention for three heads takes 64 MB, its softmax another.
    large = case(model="deit_tiny_patch16_224", form="materialised", size=768)
    assert launch(large, 0.01, NEVER, memory_limit=100 * 2**20).status == "out of memory"


@pytest.mark.parametrize(
    "program, status",
    [
        ("import os; os._exit(75)", "over budget: no call in 2 s"),
        ("import os; os.kill(os.getpid(), 9)", "killed (signal 9): probably out of memory"),
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
    assert launch(case(), 1, 2).status == status


def test_a_first_call_that_takes_too_long_ends_the_process(case, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(worker.os, "_exit", lambda code: ended.set() if code == worker.TOO_LONG else None)
    monkeypatch.setattr(Step, "__call__", lambda step: ended.wait(300))  # unless somebody ends it
    run_round(case(), share=1.0, patience=0.0, measure_memory=False)
    assert ended.is_set()


def test_a_call_that_ends_in_time_ends_nothing():
    ended = threading.Event()
    with after(NEVER, ended.set):
        pass
    assert not ended.is_set()


def test_a_size_that_a_model_refuses_is_an_answer(case):
    done = run_round(case(model="vim_nano_patch4_32", size=30), 0.1, NEVER, measure_memory=False)
    assert done.status.startswith("refused: ") and "30x30" in done.status


def test_one_sample_where_the_first_call_took_the_share(case, clock):
    done = run_round(case(), share=0.5, patience=NEVER, measure_memory=True, clock=clock(1.0))
    assert (done.seconds, done.first_call, done.spent) == ([1.0], True, 1.0)


def test_memory_is_measured_where_wanted_by_a_call_more(case, clock):
    of_time, both = (run_round(case(), 3.5, NEVER, measure_memory, clock(1.0)) for measure_memory in (False, True))
    assert of_time.peak_bytes is None
    assert of_time == Round(seconds=[1.0] * 3, spent=4.0, attention="sdpa", threads=1)
    assert both.seconds == of_time.seconds and both.spent == 5.0
