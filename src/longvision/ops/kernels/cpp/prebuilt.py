"""The libraries that a wheel brings: the best that this processor can run, of those made from the sources beside it."""

import functools
import platform
from pathlib import Path

from longvision.ops.kernels.cpp.compiler import SOURCES, CompilerError, prebuilt_name

FOLDER = SOURCES / "prebuilt"
# The levels of the x86-64 psABI, by the names in /proc/cpuinfo; each needs those before it too.
LEVELS = {
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def prebuilt(definitions: tuple[str, ...]) -> Path:
    """The library of the wheel for these preprocessor definitions.

    Raises:
        CompilerError: there is none for this processor and these sources.
    """
    for target in reversed(targets(platform.machine(), _flags())):
        path = FOLDER / prebuilt_name(target, definitions)
        if path.exists():
            return path
    raise CompilerError("longvision was installed without compiled kernels for this processor")


def targets(machine: str, flags: set[str]) -> list[str]:
    """What a processor with these flags runs, the best last."""
    if machine == "aarch64":
        return ["armv8-a"]
    found: list[str] = []
    if machine == "x86_64":
        for level, needed in LEVELS.items():
            if not needed <= flags:
                break
            found.append(level)
    return found


@functools.cache
def _flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
