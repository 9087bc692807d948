"""From the sources beside this file to a shared library for this processor, once a machine."""

import hashlib
import importlib.metadata
import importlib.util
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

from longvision.cache import CACHE_VARIABLE, user_cache

LOGGER = logging.getLogger("longvision")
SOURCES = Path(__file__).parent
PATIENCE = 600  # seconds
# Compilers differ in where they fuse a product and a sum by themselves.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-w"]
FLAGS += [] if sys.platform == "win32" else ["-fPIC", "-pthread"]
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
INSTALL = "a C++ compiler, or the Python package ziglang, which brings one (pip install ziglang)"


class CompilerError(Exception):
    """No library could be made; the text says why, in one sentence."""


def compiled(definitions: tuple[str, ...], compiler: list[str]) -> Path:
    """The library for these preprocessor definitions, from the cache or compiled now (a few seconds).

    Raises:
        CompilerError: the compiler failed, or there is no place for what it made.
    """
    command = command_for(compiler, _this_processor(), definitions)
    path = cache_folder() / f"kernels-{_fingerprint(command)}{SUFFIX}"
    if path.exists():
        return path
    start = time.perf_counter()
    LOGGER.warning(
        "longvision: compiling its CPU kernels for this machine, once (a few %s)",
        "minutes, the compiler's own library too" if "ziglang" in compiler else "seconds",
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            compile_to(command, made)
            os.replace(made, path)  # another process may be doing the same: it sees all of the library or none
    except OSError as error:
        raise CompilerError(
            f"{path.parent} cannot be written ({error.strerror or error}): set {CACHE_VARIABLE}"
        ) from error
    LOGGER.info("longvision: compiled in %.1f s: %s", time.perf_counter() - start, path)
    return path


def find_compiler() -> list[str]:
    """The command of a C++ compiler of this machine: CXX, or the first of g++, clang++ and c++."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompilerError(f"CXX={os.environ['CXX']} is no command: {error}") from error
    for command in [named] if named else [["g++"], ["clang++"], ["c++"]]:
        if shutil.which(command[0]):
            return command
    raise CompilerError(f"no C++ compiler ({' '.join(named) or 'g++ or clang++'}) was found: install {INSTALL}")


def find_ziglang() -> list[str] | None:
    """The command of the C++ compiler that the Python package ziglang brings, where that is installed."""
    there = sys.executable and importlib.util.find_spec("ziglang")
    return [sys.executable, "-P", "-m", "ziglang", "c++"] if there else None


def command_for(compiler: list[str], processor: str, definitions: tuple[str, ...]) -> list[str]:
    """The whole command, but for where the library goes. `processor` is a flag, as `-march=native`."""
    strip = ["-s"] if "ziglang" in compiler else []  # it carries its own library, of ten times the size with symbols
    return [*compiler, *FLAGS, *strip, processor, *(f"-D{name}" for name in definitions)]


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    folder = user_cache()
    if folder is None:
        raise CompilerError(f"there is no home folder to keep them in: set {CACHE_VARIABLE}")
    return folder


def compile_to(command: list[str], path: Path) -> None:
    """Runs a command of `command_for`; whatever else it writes goes beside `path`.

    Raises:
        CompilerError: it failed; the compiler's own words are in the text.
    """
    places = {}
    if "ziglang" in command:  # it keeps its library, compiled, in the one; the other would be in the current folder
        places = {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig"), "ZIG_LOCAL_CACHE_DIR": str(path.parent / "zig")}
    try:
        done = subprocess.run(
            [*command, str(SOURCES / "kernels.cpp"), "-o", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            env={**places, **os.environ},
        )
    except OSError as error:
        raise CompilerError(f"{command[0]} cannot be run: {error.strerror or error}") from error
    except subprocess.TimeoutExpired as error:
        raise CompilerError(f"{command[0]} did not end within {PATIENCE} s") from error
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
        raise CompilerError(f"{command[0]} failed: {reason.strip()}")


def sources_fingerprint() -> str:
    """A library that was compiled before is of use with the very sources that it was made from alone."""
    texts = [path.read_bytes() for path in [*sorted(SOURCES.glob("*.h")), SOURCES / "kernels.cpp"]]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def prebuilt_name(target: str, definitions: tuple[str, ...]) -> str:
    """Of the file of a wheel that is for these processors, as `x86-64-v3`."""
    return "-".join(["kernels", *definitions, target, sources_fingerprint()]) + SUFFIX


def fingerprint_on_this_processor(library: Path) -> str:
    """Of a library as this processor runs it: a home folder may be shared by machines of different kinds."""
    return _hash(hashlib.sha256(library.read_bytes()).hexdigest(), platform.machine(), _processor_features())


def _this_processor() -> str:
    return "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64", "ppc64le") else "-march=native"


def _fingerprint(command: list[str]) -> str:
    """Of everything that the library depends on."""
    if "ziglang" in command:
        version = importlib.metadata.version("ziglang")
    else:  # asking the compiler itself would take longer than loading the kernels
        version = _version(Path(shutil.which(command[0]) or command[0]))
    return _hash(platform.machine(), _processor_features(), *command, version, sources_fingerprint())


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _version(path: Path) -> str:
    """A file's name, size and time."""
    path = path.resolve()
    return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else str(path)


def _processor_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
