"""The gate lets nothing wrong through."""

import pytest
import torch

from longvision.benchmark.scans import Scan, check, scans
from longvision.ops.common import BACKENDS

NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
REFERENCE = scans()["reference"].run


def passes(scan, dtype="float32"):
    """ "ok", or why it does not."""
    return check(scan, 4, getattr(torch, dtype), "cpu")


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
        return REFERENCE({**inputs, name: WrongGradient.apply(inputs[name])}, reverse, cu_seqlens)

    return run


def wrong_output(inputs, reverse, cu_seqlens):
    return REFERENCE(inputs, reverse, cu_seqlens) + 1e-3


def wrong_direction(inputs, reverse, cu_seqlens):
    return REFERENCE(inputs, False, cu_seqlens)


def wrong_boundaries(inputs, reverse, cu_seqlens):
    return REFERENCE(inputs, reverse, None)


def wrong_last_channels(inputs, reverse, cu_seqlens):
    """As a kernel that forgets what a vector of eight does not divide."""
    y = REFERENCE(inputs, reverse, cu_seqlens)
    kept = y.shape[2] // 8 * 8
    return torch.cat([y[:, :, :kept], 0 * y[:, :, kept:]], dim=2)


def wrong_nan(inputs, reverse, cu_seqlens):
    return REFERENCE(inputs, reverse, cu_seqlens) * float("nan")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_the_backends_pass(monkeypatch, name, dtype):
    if name == "triton":  # its interpreter cuts bfloat16 off instead of rounding it
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    status = passes(scans()[name], dtype)
    assert status == "ok" or status.startswith("not available: ")


@pytest.mark.parametrize(
    "run, expected",
    [
        *((wrong_gradient_of(name), f"wrong: gradient of {name} off by 0.01 ") for name in NAMES),
        (wrong_output, "wrong: output off by"),
        (wrong_direction, "backward direction)"),
        (wrong_boundaries, "packed)"),
        (wrong_last_channels, "wrong: output off by 1 (1 token, 5 channels)"),
        (wrong_nan, "wrong: output off by nan"),
    ],
)
def test_what_is_wrong_does_not(run, expected):
    assert expected in passes(Scan(run))


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

    assert passes(Scan(run)) == expected


def test_mambapy_computes_the_same():
    pytest.importorskip("mambapy")
    assert passes(scans()["mambapy"], "float64") == "ok"
