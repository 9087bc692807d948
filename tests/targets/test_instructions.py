"""What the innermost loops are compiled to: instructions on vectors, and spills.

A change to the kernels may be better for one processor and spoil another, and who measures on one does not see it.
Where a figure falls, lower it here and in docs/decisions/2026-11-28-targets.md.
"""

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest

from longvision.ops.kernels.cpp import compiler
from support.assembly import loops

COUNTED = Path(__file__).parent / "counted.cpp"
FUNCTIONS = {"forward": "3runILb1E", "backward": "8run_backILb1ELb0E", "product": "4tileILb0E"}
ZIG = compiler.find_ziglang() or ["ziglang"]
COMPILERS = {
    "x86-64-v3": ["g++", "-march=x86-64-v3"],
    "x86-64-v4": ["g++", "-march=x86-64-v4"],
    "neoverse-v1": ["aarch64-linux-gnu-g++", "-mcpu=neoverse-v1"],
    "apple-m1": [*ZIG, "-g0", "-target", "aarch64-macos", "-mcpu=apple_m1"],  # g++ does not know it
}
# Of each loop (a backward has two: as in the forward, and back): instructions on vectors, and how many of them load
# from the stack or store to it. With g++ 12 and zig 0.17 (clang 22). A forward takes two states where there are 16
# registers, four where there are 32, a backward four; a tile has 6 or 12 rows of two vectors.
FIGURES = {
    "x86-64-v3": {"forward": [(36, 0)], "backward": [(96, 4), (50, 2)], "product": [(20, 0)]},
    "x86-64-v4": {"forward": [(65, 0)], "backward": [(85, 0), (42, 0)], "product": [(39, 0)]},
    "neoverse-v1": {"forward": [(92, 0)], "backward": [(113, 0), (59, 0)], "product": [(37, 0)]},
    "apple-m1": {"forward": [(84, 0)], "backward": [(109, 0), (57, 0)], "product": [(37, 0)]},
}
ANOTHER = 1.1  # times as many, of another compiler's version

pytestmark = pytest.mark.targets


def is_the_counted_one(command, folder):
    """`folder`: where zig, asked for its version, leaves an empty file."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, cwd=folder)
    return re.search(r"\) 12\.|clang version 22\.", done.stdout) is not None


@pytest.mark.parametrize("target", FIGURES)
def test_no_more_instructions_than_there_were(tmp_path, target):
    command = COMPILERS[target]
    if not which(command[0]):
        pytest.skip(f"{target} needs {command[0]}")
    flags = [flag for flag in compiler.FLAGS if flag not in ("-shared", "-fPIC")]
    made = tmp_path / "counted.s"
    subprocess.run(
        [*command, *flags, f"-I{compiler.SOURCES}", "-S", str(COUNTED), "-o", str(made)], check=True, cwd=tmp_path
    )
    factor = 1 if is_the_counted_one(command, tmp_path) else ANOTHER
    found = {name: [tuple(loop) for loop in loops(made.read_text(), of)] for name, of in FUNCTIONS.items()}
    print(target, found)
    assert {name: len(each) for name, each in found.items()} == {"forward": 1, "backward": 2, "product": 1}
    for name, each in found.items():
        for got, figure in zip(each, FIGURES[target][name]):
            assert all(a <= b * factor for a, b in zip(got, figure)), f"{name}: {got} where {figure} were"
