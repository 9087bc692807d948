"""The gate lets nothing wrong through; what is right is timed beside the matrix products."""

import pytest
import torch

from longvision.benchmark import ops
from longvision.benchmark.ops import OpsBenchmark, OpsPlan, Scan, check
from longvision.ops.common import BACKENDS

NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
SMALL = dict(tokens=[5, 20], channels=8, states=4, budget=0.05, rounds=2)


def reference(inputs, reverse, cu_seqlens):
    return ops._backend("reference")(inputs, reverse, cu_seqlens)


class WrongGradient(torch.autograd.Function):
    """The identity, but its gradient is a hundredth too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 1.01 * grad


def wrong_gradient_of(name):
    def run(inputs, reverse, cu_seqlens):
        return reference({**inputs, name: WrongGradient.apply(inputs[name])}, reverse, cu_seqlens)

    return run


def wrong_output(inputs, reverse, cu_seqlens):
    return reference(inputs, reverse, cu_seqlens) + 1e-3


def wrong_direction(inputs, reverse, cu_seqlens):
    return reference(inputs, False, cu_seqlens)


def wrong_borders(inputs, reverse, cu_seqlens):
    return reference(inputs, reverse, None)


def wrong_last_channels(inputs, reverse, cu_seqlens):
    """As a kernel that forgets what a vector of eight does not divide."""
    y = reference(inputs, reverse, cu_seqlens)
    kept = y.shape[2] // 8 * 8
    return torch.cat([y[:, :, :kept], 0 * y[:, :, kept:]], dim=2)


def wrong_nan(inputs, reverse, cu_seqlens):
    return reference(inputs, reverse, cu_seqlens) * float("nan")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_backends_pass(monkeypatch, name, dtype):
    if name == "triton":  # its interpreter cuts bfloat16 off instead of rounding it
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    status = check(ops.scans()[name], OpsPlan(**SMALL, dtype=dtype))
    assert status == "ok" or status.startswith("not available: ")


@pytest.mark.parametrize(
    "run, expected",
    [
        *((wrong_gradient_of(name), f"wrong: gradient of {name} off by 0.01 ") for name in NAMES),
        (wrong_output, "wrong: output off by"),
        (wrong_direction, "backward direction)"),
        (wrong_borders, "packed)"),
        (wrong_last_channels, "wrong: output off by 1 (1 token, 5 channels)"),
        (wrong_nan, "wrong: output off by nan"),
    ],
)
def test_what_is_wrong_does_not(run, expected):
    assert expected in check(Scan(run), OpsPlan(**SMALL))


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("no compiler"), "not available: no compiler"),
        (ImportError("no triton"), "not available: no triton"),
        (AssertionError("a bug"), "failed: a bug"),
    ],
)
def test_what_does_not_run(error, expected):
    def run(*_):
        raise error

    assert check(Scan(run), OpsPlan(**SMALL)) == expected


def test_a_wrong_backend_gets_no_time_and_an_absent_one_a_reason(monkeypatch):
    def absent(*_):
        raise ValueError("not on this machine")

    contenders = {"reference": Scan(reference), "wrong": Scan(wrong_output), "absent": Scan(absent)}
    monkeypatch.setattr(ops, "scans", lambda: contenders)
    benchmark = OpsBenchmark(OpsPlan(**SMALL))
    news = list(benchmark.run())
    assert [done for done, _ in news] == list(range(1, benchmark.steps + 1))  # no number is skipped
    assert benchmark.wrong
    rows = {(row["tokens"], row["backend"]): row for row in benchmark.rows()}
    assert len(rows) == 2 * 4
    for tokens in (5, 20):
        assert rows[tokens, "wrong"]["status"].startswith("wrong: output off by")
        assert rows[tokens, "wrong"]["ms_median"] is rows[tokens, "wrong"]["products_ratio"] is None
        assert rows[tokens, "absent"]["status"] == "not available: not on this machine"
        assert rows[tokens, "reference"]["reference_ratio"] == rows[tokens, "matrix products"]["products_ratio"] == 1
        assert rows[tokens, "reference"]["ms_median"] > rows[tokens, "matrix products"]["ms_median"]


def test_an_absent_backend_is_no_mistake(monkeypatch):
    def absent(*_):
        raise ValueError("not on this machine")

    monkeypatch.setattr(ops, "scans", lambda: {"reference": Scan(reference), "absent": Scan(absent)})
    benchmark = OpsBenchmark(OpsPlan(**SMALL, mode="train"))
    list(benchmark.run())
    assert not benchmark.wrong


def test_memory_that_runs_out_later_is_a_row(monkeypatch):
    def greedy(inputs, reverse, cu_seqlens):
        if inputs["x"].shape[1] == 20:
            raise MemoryError
        return reference(inputs, reverse, cu_seqlens)

    monkeypatch.setattr(ops, "scans", lambda: {"greedy": Scan(greedy)})
    benchmark = OpsBenchmark(OpsPlan(**SMALL))
    news = list(benchmark.run())
    assert [done for done, _ in news] == list(range(1, benchmark.steps + 1))
    assert [r["status"] for r in benchmark.rows() if r["backend"] == "greedy"] == ["ok", "out of memory"]
    assert not benchmark.wrong


@pytest.mark.parametrize("mode, calls", [("infer", 1), ("train", 3)])
def test_the_products_are_those_of_a_block(mode, calls):
    from torch.utils.flop_counter import FlopCounterMode

    plan, tokens = OpsPlan([197], channels=384, mode=mode), 197
    call = ops.products_call(plan, tokens)
    with FlopCounterMode(display=False) as counter:
        call()
    D, E, N, R = 192, 384, 16, 12
    macs = tokens * (D * 2 * E + 2 * E * (R + 2 * N) + 2 * R * E + E * D)
    assert counter.get_total_flops() == 2 * macs * calls  # in training, a product for either gradient


def test_training_computes_every_gradient():
    inputs = ops.make_inputs(1, 5, 8, 4, torch.float32, "cpu")
    seen = []

    def run(leaves, reverse, cu_seqlens):
        seen.append(leaves)
        return reference(leaves, reverse, cu_seqlens)

    call = ops._scan_call(Scan(run), inputs, "train")
    call()
    first = {name: leaf.grad.clone() for name, leaf in seen[-1].items()}
    call()
    for name, leaf in seen[-1].items():
        assert torch.equal(leaf.grad, first[name])  # not added up
    assert all(grad.abs().sum() > 0 for grad in first.values())


def test_mambapy_computes_the_same():
    pytest.importorskip("mambapy")
    assert check(ops.scans()["mambapy"], OpsPlan(**SMALL, dtype="float64")) == "ok"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tokens": []}, "--tokens : expected numbers above 0"),
        ({"tokens": [0, 5]}, "--tokens 0,5: expected numbers above 0"),
        ({"channels": 0}, "--channels 0: expected at least 1"),
        ({"channels": 7}, "--channels 7: expected an even number"),
        ({"batch": -1}, "--batch -1: expected at least 1"),
        ({"dtype": "int8"}, "--dtype 'int8' is unknown"),
        ({"mode": "eval"}, "--mode 'eval' is unknown"),
        ({"budget": -1.0}, "--budget -1: expected"),
    ],
)
def test_plans_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        OpsPlan(**{**SMALL, **changes})
