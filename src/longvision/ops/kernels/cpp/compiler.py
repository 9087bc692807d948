"""From the sources beside this file to a shared library for this processor, once a machine."""

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOGGER = logging.getLogger("longvision")
SOURCES = Path(__file__).parent
CACHE_VARIABLE = "LONGVISION_CACHE"
PATIENCE = 300  # seconds
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread", "-w"]


class CompilerError(Exception):
    """No library could be made; the text says why, in one sentence."""


def compiled(definitions: tuple[str, ...]) -> Path:
    """The library for these preprocessor definitions, from the cache or compiled now (a few seconds).

    Raises:
        CompilerError: no compiler, or it failed.
    """
    compiler = find_compiler()
    command = [*compiler, *FLAGS, _this_processor(), *(f"-D{name}" for name in definitions)]
    path = cache_folder() / f"kernels-{_fingerprint(command)}.so"
    if path.exists():
        return path
    start = time.perf_counter()
    LOGGER.warning("longvision: compiling its CPU kernels for this machine, once (a few seconds)")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            _compile(command, made)
            os.replace(made, path)  # another process may be doing the same: it sees all of the library or none
    except OSError as error:
        raise CompilerError(
            f"{path.parent} cannot be written ({error.strerror or error}): set {CACHE_VARIABLE}"
        ) from error
    LOGGER.info("longvision: compiled in %.1f s: %s", time.perf_counter() - start, path)
    return path


def find_compiler() -> list[str]:
    """The command of a C++ compiler: CXX, or the first of g++, clang++ and c++."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompilerError(f"CXX={os.environ['CXX']} is no command: {error}") from error
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise CompilerError(f"no C++ compiler ({' '.join(named) or 'g++ or clang++'}) was found: install one")


def cache_folder() -> Path:
    """LONGVISION_CACHE, or the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    try:
        return Path(base).expanduser() / "longvision"
    except RuntimeError as error:
        raise CompilerError(f"there is no home folder to keep them in: set {CACHE_VARIABLE}") from error


def _compile(command: list[str], path: Path) -> None:
    try:
        done = subprocess.run(
            [*command, str(SOURCES / "kernels.cpp"), "-o", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except OSError as error:
        raise CompilerError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise CompilerError(f"{command[0]} did not end within {PATIENCE} s") from error
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
        raise CompilerError(f"{command[0]} failed: {reason.strip()}")


def _this_processor() -> str:
    return "-mcpu=native" if platform.machine() in ("arm64", "aarch64", "ppc64le") else "-march=native"


def _fingerprint(command: list[str]) -> str:
    """Of everything that the library depends on; a home folder may be shared by machines of different kinds."""
    parts = [platform.machine(), _processor_features(), *command, _version(command[0])]
    parts += [path.read_text("utf-8") for path in [*sorted(SOURCES.glob("*.h")), SOURCES / "kernels.cpp"]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(compiler: str) -> str:
    """Its file's name, size and time: asking the compiler itself would take longer than loading the kernels."""
    path = Path(shutil.which(compiler) or compiler).resolve()
    return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else str(path)


def _processor_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
