"""Imports point down, the core stays lean, and `import longvision` is quick."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import longvision

SOURCE = Path(longvision.__file__).parent
# Who may import whom, room by room; everybody may import itself and `version`.
MAY_IMPORT = {
    "errors": "",
    "types": "",
    "text": "",
    "names": "",
    "files": "errors",
    "cache": "",
    "grid": "errors",
    "registry": "errors",
    "ops": "errors cache",
    "layers": "errors grid types ops",
    "compat": "errors ops layers",
    "models": "errors files grid names types ops layers",
    "heads": "errors types models",
    "data": "errors cache files types text grid",
    "metrics": "errors types",
    "viz": "errors files types text data",
    "inference": "errors files types text registry models heads data viz",
    "explain": "errors files types text names ops layers models data viz inference",
    "tasks": "errors files types text models heads data metrics viz inference",
    "engine": "errors files types text registry layers models data tasks viz",
    "benchmark": "errors files types ops layers models heads",
}
HEAVY = ("lightning", "torchmetrics", "jsonargparse", "sklearn", "matplotlib", "pyarrow", "tensorboard", "triton")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in a file, those inside functions too, relative ones made absolute."""
    package = ("longvision", *path.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from longvision import models` imports longvision.models
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "longvision" else [module]
            yield from ((name, node.lineno) for name in names)


def internal_imports() -> Iterator[tuple[str, str, str]]:
    """(room of the importer, room imported, file:line) of every import of our own."""
    for path in sorted(SOURCE.rglob("*.py")):
        importer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        for module, line in imports(path):
            if module.split(".")[0] == "longvision":
                imported = [*module.split("."), "__init__"][1]
                yield importer, imported, f"{path.relative_to(SOURCE)}:{line} imports {module}"


def test_imports_point_down():
    found = list(internal_imports())
    assert len(found) > 20  # or this reads nothing
    for importer, imported, where in found:
        if imported in (importer, "version") or importer == "__main__":  # below all, above all
            continue
        if importer == "__init__":  # registers the models and no more
            assert imported == "models", where
            continue
        assert imported in MAY_IMPORT[importer].split(), where


def test_only_the_entry_imports_the_command():
    for path in sorted(SOURCE.rglob("*.py")):
        for module, line in imports(path):
            command = module.split(".")[0] == "longvision_cli"
            assert not command or path.name == "__main__.py", f"{path.relative_to(SOURCE)}:{line} imports {module}"


def test_every_room_is_in_the_table():
    rooms = {path.name.removesuffix(".py") for path in SOURCE.iterdir() if path.suffix == ".py" or path.is_dir()}
    rooms -= {"__init__", "__main__", "version", "recipes", "__pycache__"}
    assert rooms == set(MAY_IMPORT)


def test_ops_import_torch_only():
    """And the kernels in Triton, in a folder of their own, Triton."""
    allowed = {"torch", "longvision", *sys.stdlib_module_names}
    kernels = SOURCE / "ops" / "kernels" / "triton"
    with_triton = set()
    for path in sorted((SOURCE / "ops").rglob("*.py")):
        for module, line in imports(path):
            package = module.split(".")[0]
            with_triton |= {path.parent} if package == "triton" else set()
            here = allowed | {"triton"} if path.parent == kernels else allowed
            assert package in here, f"{path.relative_to(SOURCE)}:{line} imports {module}"
    assert with_triton == {kernels}  # or this reads nothing


@pytest.mark.slow
def test_import_is_lean():
    """Nothing that only training needs, and none of our own rooms above the models."""
    code = f"""
import sys
import torch, timm, torchvision
before = set(sys.modules)
import longvision
print(sorted(name for name in {HEAVY!r} if name in set(sys.modules) - before))
names = longvision.models.NAMES
print(set(timm.list_models("vi?_nano_*", exclude_filters="*_pyramid")) < set(names))
with_pyramid = [f"{{name}}_pyramid" for name in names if not name.startswith("vmamba")]
print(sorted(timm.list_models("*_pyramid*")) == sorted(with_pyramid))  # no others' names
rooms = ["longvision.data", "longvision.tasks", "longvision.engine", "longvision_cli"]
print([room for room in rooms if room in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    heavy, *registered, rooms = done.stdout.splitlines()
    assert heavy == rooms == "[]"
    assert registered == ["True", "True"]


def test_version_is_a_version():
    assert len(longvision.__version__.split(".")) >= 2 and longvision.__version__[0].isdigit()
