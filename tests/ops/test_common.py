"""Which backend an op takes, what is said where one cannot be had, and how often packed boundaries are looked at."""

import pytest
import torch

from longvision.ops import causal_conv1d, check_cu_seqlens, common, rms_norm
from longvision.ops.kernels.cpp.compiler import INSTALL
from longvision.ops.selective_scan import chunked, cpu, op
from support import mixer_cases
from support.scan_cases import make, needs_compiler, scan


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
    assert common.choose_backend(None, device, dtype) == "chunked"


@pytest.mark.parametrize("interpret, cuda, name, device, dtype, needs", [
    ("0", "13.0", "cpu", "cuda", torch.float32, "a CPU"),
    ("0", "13.0", "cpu", "cpu", torch.float16, "float32, float64 or bfloat16"),
    ("0", "13.0", "cpu", "meta", torch.float16, "a CPU and float32, float64 or bfloat16"),
    ("0", "13.0", "cpu", "cpu", torch.float32, INSTALL),
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
        monkeypatch.setattr(f"longvision.ops.common.has_{which}_kernels", lambda *_: False)
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    end = f"={name!r} cannot take {dtype} on {device}: it needs {needs}; without this choice the fastest that fits is "
    end += "taken"
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", name)
    for asked, origin in ((name, "backend"), (None, "LONGVISION_SCAN_BACKEND")):
        with pytest.raises(ValueError) as error:
            common.choose_backend(asked, device, dtype)
        assert str(error.value) == origin + end


def test_without_kernels_plain_torch_is_the_default(monkeypatch):
    monkeypatch.delenv("LONGVISION_SCAN_BACKEND", raising=False)
    monkeypatch.setattr("longvision.ops.common.has_cpu_kernels", lambda device, dtype: False)
    assert common.choose_backend(None, "cpu", torch.float32) == "chunked"


OPS = {
    "rms_norm": lambda: rms_norm(torch.ones(1, 2), torch.ones(2)),
    "causal_conv1d": lambda: causal_conv1d(torch.ones(1, 2, 3), torch.ones(3, 4)),
    "selective_scan": lambda: scan(make(1, 3, 2, 2), None),
    "mixer": lambda: mixer_cases.make_block(1, 3).call(),
}


@pytest.mark.parametrize("name", OPS)
def test_an_unknown_backend_is_named_with_the_ones_there_are(monkeypatch, name):
    """The variable is every op's: no message calls it the scan's."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"^LONGVISION_SCAN_BACKEND='fast' .*longvision\.ops.*chunked, reference"):
        OPS[name]()


def test_an_unknown_backend_as_an_argument():
    with pytest.raises(ValueError, match=r"^backend='cuda' .*chunked, reference"):
        scan(make(1, 3, 2, 2), "cuda")


# Packed sequences


@pytest.fixture
def looks(monkeypatch):
    """How often boundaries were looked at that lie where a look makes a device wait."""
    seen, check = [], common._check_boundaries
    monkeypatch.setattr(common, "_is_free_to_read", lambda tensor: False)
    monkeypatch.setattr(common, "_check_boundaries", lambda *args: (seen.append(args[1]), check(*args))[1])
    return seen


def test_boundaries_on_a_gpu_are_looked_at_once(looks):
    """However many blocks are given them."""
    x, cu_seqlens = torch.ones(1, 9, 3), torch.tensor([0, 4, 9])
    for _ in range(24):
        check_cu_seqlens(cu_seqlens, x)
    assert looks == [9]


def test_boundaries_that_were_written_to_are_looked_at_again(looks):
    x, cu_seqlens = torch.ones(1, 9, 3), torch.tensor([0, 4, 9])
    check_cu_seqlens(cu_seqlens, x)
    cu_seqlens[1] = 12
    with pytest.raises(ValueError, match=r"\[0, 12, 9\]"):
        check_cu_seqlens(cu_seqlens, x)
    with pytest.raises(ValueError, match=r"\[0, 12, 9\]"):  # what was refused is not remembered
        check_cu_seqlens(cu_seqlens, x)


def test_the_same_boundaries_do_not_pack_another_row(looks):
    cu_seqlens = torch.tensor([0, 4, 9])
    check_cu_seqlens(cu_seqlens, torch.ones(1, 9, 3))
    with pytest.raises(ValueError, match="10"):
        check_cu_seqlens(cu_seqlens, torch.ones(1, 10, 3))


def test_boundaries_made_in_inference_mode(looks):
    with torch.inference_mode():
        cu_seqlens = torch.tensor([0, 4, 9])
        for _ in range(3):
            check_cu_seqlens(cu_seqlens, torch.ones(1, 9, 3))
    assert looks == [9]


def test_boundaries_on_the_cpu_are_looked_at_each_time():
    """There it costs nothing, and the kernels in C++ read where they say."""
    x, cu_seqlens = torch.ones(1, 9, 3), torch.tensor([0, 4, 9])
    check_cu_seqlens(cu_seqlens, x)
    cu_seqlens.data[1] = 12  # which no version counts
    with pytest.raises(ValueError, match=r"\[0, 12, 9\]"):
        check_cu_seqlens(cu_seqlens, x)
