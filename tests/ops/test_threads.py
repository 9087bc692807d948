"""On which threads the kernels run: torch's, known by the functions of its runtime, or their own; equal results."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from longvision.ops.kernels.cpp import runtime
from longvision.ops.kernels.cpp.library import kernels_for
from support.mixer_cases import make_block
from support.scan_cases import needs_compiler

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]
ADDRESSES = 1 + len(runtime.LLVM)
OWN = bytes(8 * ADDRESSES)


@pytest.fixture
def run_on():
    """Sets the runtime whose threads the kernels take, until the test ends."""
    library = kernels_for(torch.float32)
    yield library.set_runtime
    library.set_runtime(runtime.start_functions())


def results(case):
    case = case.leaves()
    y = case.call()
    y.square().sum().backward()
    return [y.detach(), *(tensor.grad for tensor in case.named().values() if tensor.is_floating_point())]


def same(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_of_our_own_give_the_same_bits(run_on, threads, count):
    case = make_block(2, 130, width=40, dtype=torch.float32)
    threads(1)
    expected = results(case)
    run_on(OWN)
    for now in (count, 2, count):  # more than before, fewer, and again
        threads(now)
        assert same(results(case), expected)


def test_callers_do_not_share_threads(run_on, threads):
    run_on(OWN)
    threads(2)
    cases = [make_block(2, 70 + i, width=24, dtype=torch.float32) for i in range(4)]
    expected = [results(case) for case in cases]
    found = {}

    def call(i):
        torch.set_num_threads(2)
        found[i] = [same(results(cases[i]), expected[i]) for _ in range(5)]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == {i: [True] * 5 for i in range(4)}


FORKS = """
import os, sys, torch
from longvision.layers import VimBlock
from longvision.ops.kernels.cpp.library import kernels_for
kernels_for(torch.float32).set_runtime(bytes(32))
torch.set_num_threads(3)
block, x = VimBlock(16).eval(), torch.randn(1, 70, 16)
with torch.no_grad():
    expected = block(x)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(block(x), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(block(x), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_has_threads_of_its_own(python):
    assert python(FORKS).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="torch for Linux brings an OpenMP runtime")
def test_torch_s_runtime_is_known_by_its_functions():
    assert runtime.start_functions() != OWN


def test_without_a_runtime_nothing_is_taken(monkeypatch):
    monkeypatch.setattr(runtime, "_loaded", lambda: iter([ctypes.CDLL(None)]))
    monkeypatch.setattr(runtime, "GNU", ("no_such_function",))
    monkeypatch.setattr(runtime, "LLVM", ("none", "of", "these"))
    assert runtime.start_functions() == OWN


PRELOADED = """
import sys, torch
from longvision.layers import VimBlock
from longvision.ops.kernels.cpp import runtime
from longvision.ops.kernels.cpp.library import kernels_for
library = kernels_for(torch.float32)
torch.set_num_threads(2)
block, x = VimBlock(16).eval(), torch.randn(1, 70, 16)
first = int.from_bytes(runtime.start_functions()[:8], sys.byteorder)
where = [line for line in open("/proc/self/maps") if "omp" in line and "r-xp" in line]
spans = [(*(int(end, 16) for end in line.split()[0].split("-")), line) for line in where]
assert ["libomp" in line or "libiomp" in line for low, high, line in spans if low <= first < high] == [True], where
with torch.no_grad():
    expected = block(x)
    runtime.GNU = ("not_there",)  # as on Windows
    functions = runtime.start_functions()
    assert not any(functions[:8]) and any(functions[8:])
    for starts in (functions, bytes(32)):
        library.set_runtime(starts)
        assert torch.equal(block(x), expected)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["libomp", "libiomp5"])
def test_a_runtime_that_was_preloaded_is_taken(name):
    """LLVM's or Intel's, where one is installed; by GNU's function and by its own."""
    system = Path("/usr/lib")
    folders = [*system.glob("llvm-*/lib"), *system.glob("*-linux-gnu"), Path(sys.prefix, "lib")]  # PyPI's intel-openmp
    places = [path for folder in folders for path in folder.glob(f"{name}.so*")]
    places += [path for folder in folders for path in folder.glob(f"{name}-*.so*")]
    if not places:
        pytest.skip(f"{name} is not installed")
    environment = {**os.environ, "LD_PRELOAD": str(places[0]), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PRELOADED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
