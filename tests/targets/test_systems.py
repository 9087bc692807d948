"""The kernels compiled for Windows and macOS: that they do, and that what Python calls is to be found."""

import re
import subprocess

import pytest

from longvision.ops.kernels.cpp import compiler, library
from support.exports import exports

ZIG = compiler.find_ziglang()
SYSTEMS = ("x86_64-windows-gnu", "aarch64-macos", "x86_64-macos")
FUNCTIONS = set(
    re.findall(r"^\w+ (\w+)\(", (compiler.SOURCES / "kernels.cpp").read_text().split('extern "C"')[1], re.M)
)

pytestmark = [
    pytest.mark.targets,
    pytest.mark.skipif(ZIG is None, reason="needs ziglang"),
]
each_system = pytest.mark.parametrize("system", SYSTEMS)


def compiled(tmp_path, system, dtype, *flags):
    path = tmp_path / "kernels"
    source = str(compiler.SOURCES / "kernels.cpp")
    command = [*ZIG, "-target", system, "-std=c++17", "-w", "-g0", *flags]
    definitions = [f"-D{name}" for name in library.DEFINITIONS[dtype]]
    subprocess.run([*command, *definitions, source, "-o", str(path)], check=True, cwd=tmp_path)
    return path


def test_the_functions_are_known():
    assert {"lanes", "set_runtime", "call_matmul", "call_block_backward", "space_of_block_forward"} <= FUNCTIONS


@each_system
@pytest.mark.parametrize("dtype", library.DEFINITIONS, ids=str)
def test_compiled(tmp_path, system, dtype):
    assert exports(compiled(tmp_path, system, dtype, "-c", "-O0")) >= FUNCTIONS


@pytest.mark.slow  # the first for a system compiles the C++ library, for three minutes
@each_system
def test_linked(tmp_path, system):
    dtype = next(iter(library.DEFINITIONS))
    assert exports(compiled(tmp_path, system, dtype, "-shared", "-O0")) >= FUNCTIONS
