"""Machines without a C++ compiler: the kernels of the wheel, those of ziglang, or plain torch."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from longvision.ops.kernels.cpp import compiler, prebuilt
from support.scan_cases import needs_compiler

ROOT = Path(__file__).parents[2]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="wheels hold kernels for Linux")
V2 = {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3", "fpu"}
V3 = V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# A process that finds no program: what it computes, against the reference, and what it says.
SCAN = """
import logging, os, sys, torch
os.environ["PATH"] = ""
os.environ.pop("CXX", None)
logging.basicConfig(format="%(message)s", level="WARNING")
from longvision.ops import selective_scan
from longvision.ops.kernels.cpp import library
{patch}
torch.manual_seed(0)
x, delta, B = torch.randn(2, 9, 21), torch.rand(2, 9, 21), torch.randn(2, 9, 3)
A = -torch.rand(21, 3)
y = selective_scan(x, delta, A, B, B)
truth = selective_scan(x, delta, A, B, B, backend="reference")
found = library.kernels(torch.float32)
print(found is not None, ((y - truth).norm() / truth.norm()).item() < 1e-6)
"""
NO_ZIGLANG = "library.find_ziglang = lambda: None"
NO_WHEEL = "from longvision.ops.kernels.cpp import prebuilt; prebuilt.FOLDER = prebuilt.FOLDER / 'nothing'"


def scan_without_programs(folder, *patches, source=None):
    """-> whether there are kernels, whether the result is right, the lines that were said."""
    code = SCAN.format(patch="\n".join(patches))
    first = f"import sys; sys.path.insert(0, {str(source)!r})\n" if source else ""
    done = subprocess.run(
        [sys.executable, "-c", first + code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "LONGVISION_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    kernels, right = done.stdout.split()
    return kernels == "True", right == "True", done.stderr.splitlines()


def test_plain_torch_with_one_line(tmp_path):
    kernels, right, said = scan_without_programs(tmp_path, NO_ZIGLANG, NO_WHEEL)
    assert right and not kernels
    (line,) = said
    assert "plain torch" in line and line.endswith(compiler.INSTALL)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="needs the extra `compiler`")
def test_ziglang_compiles(tmp_path):
    kernels, right, said = scan_without_programs(tmp_path, NO_WHEEL)
    assert right and kernels
    assert len(said) == 1 and "compiling" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {compiler.SUFFIX, "", ".checked"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, with the kernels of one kind of processor, unpacked -> its file, its folder."""
    pytest.importorskip("hatchling")
    root, out, unpacked = (tmp_path_factory.mktemp(name) for name in ("checkout", "wheel", "unpacked"))
    copy_checkout(root)
    best = prebuilt.targets(platform.machine(), prebuilt._flags())[-1]
    with open(root / "hatch_build.py", "a") as hook:
        hook.write(f"\n\nBUILT = {{platform.machine(): {{{best!r}: [SINGLE]}}}}\n")
    file, _ = build_wheel(root, out)
    zipfile.ZipFile(file).extractall(unpacked)
    return file, unpacked


def copy_checkout(to):
    for name in ("README.md", "LICENSE", "pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, to)
    shutil.copytree(ROOT / "src", to / "src", ignore=shutil.ignore_patterns("__pycache__"))


# Where a wheel is built, the package is not installed yet.
BUILD_ALONE = """
import sys
from hatchling.cli import hatchling

class Hidden:
    def find_spec(self, name, *_):
        if name == "longvision":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
sys.exit(hatchling())
"""


def build_wheel(root, out, **environment):
    """-> the file, and what was said."""
    command = [sys.executable, "-c", BUILD_ALONE, "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    (file,) = out.iterdir()
    return file, done.stdout + done.stderr


@pytest.mark.slow
@on_linux
@needs_compiler
def test_a_wheel_holds_kernels(wheel):
    file, unpacked = wheel
    assert file.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    (library_file,) = (unpacked / "longvision/ops/kernels/cpp/prebuilt").iterdir()
    assert compiler.sources_fingerprint() in library_file.name
    assert (unpacked / "longvision/ops/kernels/cpp/kernels.cpp").exists()  # to compile better ones


@pytest.mark.slow
@on_linux
@needs_compiler
def test_the_kernels_of_a_wheel_run(wheel, tmp_path):
    kernels, right, said = scan_without_programs(tmp_path, NO_ZIGLANG, source=wheel[1])
    assert (kernels, right, said) == (True, True, [])


@pytest.mark.slow
@on_linux
@needs_compiler
def test_kernels_of_other_sources_are_not_taken(wheel, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(wheel[1], changed)
    with open(changed / "longvision/ops/kernels/cpp/scan.h", "a") as file:
        file.write("// changed")
    kernels, right, said = scan_without_programs(tmp_path, NO_ZIGLANG, source=changed)
    assert right and not kernels and len(said) == 1


@on_linux
def test_a_wheel_without_a_compiler_is_pure_and_says_so(tmp_path):
    pytest.importorskip("hatchling")
    copy_checkout(tmp_path)
    (tmp_path / "out").mkdir()
    file, said = build_wheel(tmp_path, tmp_path / "out", CXX="/nonexistent")
    assert file.name.endswith("-py3-none-any.whl")
    assert "without compiled kernels" in said and "/nonexistent" in said


@pytest.mark.parametrize(("machine", "flags", "names"), [
    ("x86_64", V4 | {"amx"}, ["x86-64-v2", "x86-64-v3", "x86-64-v4"]),
    ("x86_64", V4 - {"avx512vl"}, ["x86-64-v2", "x86-64-v3"]),
    ("x86_64", V4 - {"fma"}, ["x86-64-v2"]),
    ("x86_64", V2, ["x86-64-v2"]),
    ("x86_64", V2 - {"ssse3"}, []),
    ("aarch64", {"asimd"}, ["armv8-a"]),
    ("riscv64", set(), []),
])  # fmt: skip
def test_which_libraries_a_processor_runs(machine, flags, names):
    """Levels of the x86-64 psABI: each holds those before it."""
    assert prebuilt.targets(machine, flags) == names


def test_the_best_that_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path)
    monkeypatch.setattr(prebuilt, "targets", lambda *_: ["small", "middle", "large"])
    with pytest.raises(compiler.CompilerError):
        prebuilt.prebuilt(())
    for target, definitions in [("small", ()), ("middle", ()), ("large", ("REAL_DOUBLE",))]:
        (tmp_path / compiler.prebuilt_name(target, definitions)).write_text("")
    assert prebuilt.prebuilt(()).name == compiler.prebuilt_name("middle", ())
    assert prebuilt.prebuilt(("REAL_DOUBLE",)).name == compiler.prebuilt_name("large", ("REAL_DOUBLE",))
