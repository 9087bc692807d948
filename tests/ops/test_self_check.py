"""A kernel that computes something else than the reference is seen before it is used, and named."""

import shutil

import pytest
import torch

from longvision.ops import self_check
from longvision.ops.kernels.cpp import compiler, library, prebuilt
from longvision.ops.kernels.cpp.record import rows
from support.scan_cases import needs_compiler

pytestmark = [needs_compiler, pytest.mark.usefixtures("poison")]
KERNELS = [*library.Library.__annotations__, "blocks_forward", "block_backward"]


@pytest.fixture
def candidate(monkeypatch):
    """A library of its own, taken by the ops as the one to be checked."""

    def load(dtype):
        path = compiler.compiled(library.DEFINITIONS[dtype], compiler.find_compiler())
        monkeypatch.setitem(library._candidates, dtype, library.Library(dtype, path))
        return library._candidates[dtype]

    return load


@pytest.mark.parametrize("dtype", library.DEFINITIONS, ids=str)
def test_right_kernels_pass(candidate, dtype):
    assert self_check.faults(candidate(dtype)) == {}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_does_nothing_is_named(candidate, name):
    broken = candidate(torch.float32)
    setattr(broken, name, lambda *_: None)
    assert name in self_check.faults(broken)


def test_contiguous_tokens_are_checked(candidate, monkeypatch):
    """Here they are taken for rows."""
    monkeypatch.setattr(self_check.scan_cpu, "rows", lambda tensor: (*rows(tensor)[:3], 0))
    assert list(self_check.faults(candidate(torch.float32))) == ["scans_forward", "scans_backward"]


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_cross_scan_is_checked(candidate, monkeypatch, name):
    right = getattr(self_check.cross_cpu, name)

    def off(*given):
        found = right(*given)
        return 1.01 * found if name == "forward" else [1.01 * grad for grad in found]

    monkeypatch.setattr(self_check.cross_cpu, name, off)
    assert list(self_check.faults(candidate(torch.float32))) == [f"scans_{name}"]


def test_a_small_error_is_seen(candidate, monkeypatch):
    """Of one number, by a hundredth."""
    forward = self_check.norm_cpu.forward

    def off(*arguments):
        y, inverse = forward(*arguments)
        y[0, 3, -1] *= 1.01
        return y, inverse

    monkeypatch.setattr(self_check.norm_cpu, "forward", off)
    found = self_check.faults(candidate(torch.float32))
    assert list(found) == ["norm_forward"] and 1e-5 < found["norm_forward"] < 1e-2


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")], ids=("inference", "no_grad", "meta")
)
def test_whatever_the_caller_is_in(candidate, mode):
    checked = candidate(torch.float32)
    before = torch.get_rng_state()
    with mode():
        assert self_check.faults(checked) == {}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A cache of its own, and no other library to turn to."""
    monkeypatch.setenv("LONGVISION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "nothing")
    monkeypatch.setattr(library, "find_ziglang", lambda: None)
    monkeypatch.setattr(library, "_say_once", library._say_once.__wrapped__)


def test_checked_once_and_again_on_another_processor(monkeypatch, alone, tmp_path):
    monkeypatch.delenv("LONGVISION_CACHE")
    path = compiler.compiled((), compiler.find_compiler())
    monkeypatch.setenv("LONGVISION_CACHE", str(tmp_path / "cache"))
    calls = []
    monkeypatch.setattr(self_check, "faults", lambda of: calls.append(of.dtype) or {})
    library._checked(torch.float32, path)
    library._checked(torch.float32, path)
    assert len(calls) == 1
    monkeypatch.setattr(compiler, "_processor_features", lambda: "another")
    library._checked(torch.float32, path)
    assert len(calls) == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGVISION_CACHE", str(tmp_path / "file/cache"))  # cannot be written
    library._checked(torch.float32, path)
    library._checked(torch.float32, path)
    assert len(calls) == 4


@pytest.mark.slow
def test_a_library_with_a_fault_is_not_used(monkeypatch, alone, tmp_path, caplog):
    copy = tmp_path / "sources"
    shutil.copytree(compiler.SOURCES, copy)
    text = (copy / "norm.h").read_text()
    assert "/ width + eps" in text
    (copy / "norm.h").write_text(text.replace("/ width + eps", "/ width + eps + 1"))
    monkeypatch.setattr(compiler, "SOURCES", copy)
    assert library.kernels.__wrapped__(torch.float32) is None
    *_, line = [record.getMessage() for record in caplog.records]
    assert "plain torch" in line and "norm_forward" in line and "scans_forward" not in line
    assert not list((tmp_path / "cache").glob("*.checked"))


def test_the_next_library_is_taken_and_the_fault_told(monkeypatch, alone, tmp_path, caplog):
    """Compiled here with a fault: the wheel's may be right."""
    good = object()

    def checked(dtype, path):
        if path == "compiled":
            raise library.KernelFault("scans_forward is off")
        return good

    monkeypatch.setattr(library, "compiled", lambda *_: "compiled")
    monkeypatch.setattr(library, "prebuilt", lambda *_: "prebuilt")
    monkeypatch.setattr(library, "_checked", checked)
    assert library.kernels.__wrapped__(torch.float32) is good
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == ["longvision: scans_forward is off"]


def test_both_compilers_have_their_say(monkeypatch, alone, caplog):
    """What there is to mend is ziglang, where that is installed."""

    def fail(definitions, compiler):
        raise library.CompilerError(f"{compiler[0]} failed")

    monkeypatch.setattr(library, "compiled", fail)
    monkeypatch.setattr(library, "find_compiler", lambda: ["g++"])
    monkeypatch.setattr(library, "find_ziglang", lambda: ["zig"])
    assert library.kernels.__wrapped__(torch.float32) is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.endswith("g++ failed; zig failed")


def test_without_a_place_for_the_result_the_library_is_used_all_the_same(monkeypatch):
    """A user without a home, in a container: what the wheel brings needs none."""

    def nowhere():
        raise compiler.CompilerError("there is no home folder")

    path = compiler.compiled(library.DEFINITIONS[torch.float32], compiler.find_compiler())
    monkeypatch.setattr(library, "cache_folder", nowhere)
    checked = []
    monkeypatch.setattr(self_check, "faults", lambda found: checked.append(found) or {})
    assert [library._checked(torch.float32, path) for _ in range(2)] == checked
