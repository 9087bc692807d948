"""Which backend an op takes, and what is said where one is asked for that cannot be had."""

import pytest
import torch
from scan_cases import make, needs_compiler, scan

from longvision.ops import backends
from longvision.ops.selective_scan import chunked, cpu, op


@pytest.fixture
def calls(monkeypatch):
    """The backends whose functions were entered, in order."""
    entered = []

    def noting(name, original):
        return lambda *arguments: (entered.append(name), original(*arguments))[1]

    monkeypatch.setattr(op, "selective_scan_reference", noting("reference", op.selective_scan_reference))
    monkeypatch.setattr(chunked, "forward", noting("chunked", chunked.forward))
    monkeypatch.setattr(cpu, "forward", noting("cpu", cpu.forward))
    return entered


@pytest.mark.parametrize("variable, argument, expected", [
    pytest.param(None, None, "cpu", marks=needs_compiler),
    pytest.param("", None, "cpu", marks=needs_compiler),
    pytest.param("cpu", None, "cpu", marks=needs_compiler),
    pytest.param("chunked", "cpu", "cpu", marks=needs_compiler),
    ("reference", None, "reference"),
    ("chunked", None, "chunked"),
    ("reference", "chunked", "chunked"),
    ("chunked", "reference", "reference"),
    (None, "reference", "reference"),
])  # fmt: skip
def test_backend_by_argument_then_by_environment(monkeypatch, calls, variable, argument, expected):
    monkeypatch.delenv("LONGVISION_SCAN_BACKEND", raising=False)
    if variable is not None:
        monkeypatch.setenv("LONGVISION_SCAN_BACKEND", variable)
    scan(make(1, 3, 2, 2), argument)
    assert calls == [expected]


@pytest.mark.parametrize("dtype, device", [(torch.float16, "cpu"), (torch.float32, "meta")])
def test_the_kernels_are_not_chosen_for_what_they_cannot_take(monkeypatch, dtype, device):
    monkeypatch.delenv("LONGVISION_SCAN_BACKEND", raising=False)
    assert backends.choose_backend(None, device, dtype) == "chunked"


@pytest.mark.parametrize("interpret, cuda, name, device, dtype, needs", [
    ("0", "13.0", "cpu", "cuda", torch.float32, "a CPU"),
    ("0", "13.0", "cpu", "cpu", torch.float16, "float32, float64 or bfloat16"),
    ("0", "13.0", "cpu", "meta", torch.float16, "a CPU and float32, float64 or bfloat16"),
    ("0", "13.0", "cpu", "cpu", torch.float32, "a C++ compiler"),
    ("0", "13.0", "triton", "cpu", torch.float32, "an NVIDIA GPU"),
    ("0", None, "triton", "cuda", torch.float32, "an NVIDIA GPU"),
    ("0", "13.0", "triton", "cuda", torch.float64, "float32, bfloat16 or float16"),
    ("0", "13.0", "triton", "cpu", torch.float64, "an NVIDIA GPU and float32, bfloat16 or float16"),
    ("0", "13.0", "triton", "cuda", torch.float32, "the package triton, able to start kernels here"),
    ("1", None, "triton", "cpu", torch.float32, "the package triton, able to start kernels here"),
])  # fmt: skip
def test_a_refusal_says_what_lacks_and_that_nobody_has_to_choose(
    monkeypatch, interpret, cuda, name, device, dtype, needs
):
    for which in ("cpu", "triton"):
        monkeypatch.setattr(f"longvision.ops.backends.has_{which}_kernels", lambda *_: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    end = f"={name!r} cannot take {dtype} on {device}: it needs {needs}; without this choice the fastest that fits is "
    end += "taken"
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", name)
    for asked, origin in ((name, "backend"), (None, "LONGVISION_SCAN_BACKEND")):
        with pytest.raises(ValueError) as error:
            backends.choose_backend(asked, device, dtype)
        assert str(error.value) == origin + end


def test_without_kernels_plain_torch_is_the_default(monkeypatch):
    monkeypatch.delenv("LONGVISION_SCAN_BACKEND", raising=False)
    monkeypatch.setattr("longvision.ops.backends.has_cpu_kernels", lambda device, dtype: False)
    assert backends.choose_backend(None, "cpu", torch.float32) == "chunked"


def test_unknown_backend_is_named_with_the_ones_there_are(monkeypatch):
    with pytest.raises(ValueError, match=r"^backend='cuda' is not .* choose one of .*chunked, reference"):
        scan(make(1, 3, 2, 2), "cuda")
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"^LONGVISION_SCAN_BACKEND='fast' is not .*chunked, reference"):
        scan(make(1, 3, 2, 2), None)
