"""What is right is timed beside the matrix products, what is wrong is not."""

import pytest
import torch

from longvision.benchmark import ops
from longvision.benchmark.ops import OpsBenchmark, products_call, scan_call
from longvision.benchmark.plan import OpsPlan
from longvision.benchmark.scans import Scan, make_inputs, scans

SMALL = dict(tokens=[5, 20], channels=8, states=4, rounds=2, device="cpu")
REFERENCE = scans()["reference"].run


def absent(*_):
    raise ValueError("not on this machine")


@pytest.fixture
def measured(monkeypatch, clock):
    """measured({name: scan}, mode="train") -> a benchmark that ran; every call takes a second."""

    def run(contenders, **options):
        monkeypatch.setattr(ops, "scans", lambda: contenders)
        stopwatch = ops.stopwatch
        monkeypatch.setattr(ops, "stopwatch", lambda call, device: stopwatch(call, device, clock(1.0)))
        benchmark = OpsBenchmark(OpsPlan(**SMALL, **options))
        benchmark.news = list(benchmark.run())
        monkeypatch.undo()
        return benchmark

    return run


def test_a_wrong_backend_gets_no_time_and_an_absent_one_a_reason(measured):
    contenders = {"reference": Scan(REFERENCE), "wrong": Scan(lambda *given: REFERENCE(*given) + 1e-3)}
    benchmark = measured({**contenders, "absent": Scan(absent)}, budget=6.0)
    assert benchmark.is_wrong
    assert benchmark.news[0] == "reference: right" and "20 tokens  reference  round 2 of 2: 1000 ms" in benchmark.news
    rows = {(row["tokens"], row["backend"]): row for row in benchmark.rows()}
    assert len(rows) == 2 * 4
    for tokens in (5, 20):
        assert rows[tokens, "wrong"]["status"].startswith("wrong: output off by")
        assert rows[tokens, "wrong"]["ms_median"] is rows[tokens, "wrong"]["products_ratio"] is None
        assert rows[tokens, "absent"]["status"] == "not available: not on this machine"
        for name in ("reference", "matrix products"):
            assert rows[tokens, name]["ms_median"] == 1000
            assert rows[tokens, name]["reference_ratio"] == rows[tokens, name]["products_ratio"] == 1


def test_an_absent_backend_is_no_mistake(measured):
    benchmark = measured({"reference": Scan(REFERENCE), "absent": Scan(absent)}, mode="train")
    assert not benchmark.is_wrong


def test_memory_that_runs_out_later_is_a_row(measured):
    def greedy(inputs, reverse, cu_seqlens):
        if inputs["x"].shape[1] == 20:
            raise MemoryError
        return REFERENCE(inputs, reverse, cu_seqlens)

    benchmark = measured({"greedy": Scan(greedy)})
    assert [row["status"] for row in benchmark.rows() if row["backend"] == "greedy"] == ["ok", "out of memory"]
    assert not benchmark.is_wrong


@pytest.mark.parametrize("mode, calls", [("infer", 1), ("train", 3)])
def test_the_products_are_those_of_a_block(mode, calls):
    from torch.utils.flop_counter import FlopCounterMode

    call = products_call(OpsPlan(tokens=[197], channels=384, mode=mode), 197, "cpu")
    with FlopCounterMode(display=False) as counter:
        call()
    D, E, N, R = 192, 384, 16, 12
    macs = 197 * (D * 2 * E + 2 * E * (R + 2 * N) + 2 * R * E + E * D)
    assert counter.get_total_flops() == 2 * macs * calls  # in training, a product for either gradient


def test_training_computes_every_gradient():
    seen = []

    def run(leaves, reverse, cu_seqlens):
        seen.append(leaves)
        return REFERENCE(leaves, reverse, cu_seqlens)

    call = scan_call(Scan(run), make_inputs(1, 5, 8, 4, torch.float32, "cpu"), "train")
    call()
    first = {name: leaf.grad.clone() for name, leaf in seen[-1].items()}
    call()
    for name, leaf in seen[-1].items():
        assert torch.equal(leaf.grad, first[name])  # not added up
    assert all(grad.abs().sum() > 0 for grad in first.values())
