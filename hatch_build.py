"""The kernels for CPUs, compiled into the wheel: for machines that have no compiler."""

import importlib.util
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "longvision/ops/kernels/cpp"
SINGLE, BRAIN, DOUBLE = (), ("STORED_BF16",), ("REAL_DOUBLE",)
# What runs where. A machine that lacks one takes what there is for less, or plain torch. Each costs a newcomer ten
# seconds of a core in `pip install`; few compute in float64, or in bfloat16 on AVX-512, without a compiler.
BUILT = {
    "x86_64": {"x86-64-v2": [SINGLE], "x86-64-v3": [SINGLE, BRAIN, DOUBLE], "x86-64-v4": [SINGLE]},
    "aarch64": {"armv8-a": [SINGLE, BRAIN, DOUBLE]},
}
# So that they ask for no libstdc++ of the machine that they run on, and show theirs to nobody.
STATIC = ["-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL"]


class KernelsBuildHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """A wheel for this kind of machine where there is a compiler, else one for all; an editable one needs none."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        compiler = _compiler_of(Path(self.root) / "src" / KERNELS / "compiler.py")
        targets = BUILT.get(platform.machine(), {}) if sys.platform == "linux" else {}
        try:
            files = build(compiler, targets, Path(self._folder.name))
        except compiler.CompilerError as error:
            self.app.display_warning(f"longvision: a wheel without compiled kernels: {error}")
            return
        if files:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-linux_{platform.machine()}"  # plain C: for every Python
            build_data["force_include"].update({str(file): f"{KERNELS}/prebuilt/{file.name}" for file in files})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._folder.cleanup()


def build(compiler: ModuleType, targets: dict[str, list[tuple[str, ...]]], folder: Path) -> list[Path]:
    """Compiles into a folder, on all cores at once.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    wanted = [(target, definitions) for target, kinds in targets.items() for definitions in kinds]
    command = compiler.find_compiler() if wanted else []

    def make(each: tuple[str, tuple[str, ...]]) -> Path:
        target, definitions = each
        path = folder / compiler.prebuilt_name(target, definitions)
        compiler.compile_to([*compiler.command_for(command, f"-march={target}", definitions), *STATIC], path)
        return path

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if wanted else 1) as pool:
        return list(pool.map(make, wanted))


def _compiler_of(path: Path) -> ModuleType:
    """The package's own module, and what it imports, without the package's `__init__`, which would import torch."""
    package = ModuleType("longvision")
    package.__path__ = [str(path.parents[3])]
    sys.modules["longvision"] = package
    spec = importlib.util.spec_from_file_location("longvision_compiler", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
