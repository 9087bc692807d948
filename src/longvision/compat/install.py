"""Our functions where other people's code looks for them: modules of the names that it imports."""

import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from longvision.compat import convolution, extensions, inner, mamba_ssm, scan
from longvision.errors import UserError

_SCAN = {name: getattr(scan, name) for name in ("selective_scan_fn", "selective_scan_ref")}
_INNER = {name: f for name, f in vars(inner).items() if "mamba_inner" in name}
_CONV = {name: f for name, f in vars(convolution).items() if name.startswith("causal_conv1d_")}
_CORE = {"fwd": extensions.core_fwd, "bwd": extensions.core_bwd}
# Each with what it holds; packages come before what is inside them.
MODULES: dict[str, dict[str, Any]] = {
    "mamba_ssm": {**_SCAN, "mamba_inner_fn": inner.mamba_inner_fn, "Mamba": mamba_ssm.Mamba},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {**_SCAN, **_INNER},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.selective_state_update": {"selective_state_update": scan.selective_state_update},
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {**_SCAN, **_INNER, "Mamba": mamba_ssm.Mamba},
    "causal_conv1d": {name: _CONV[name] for name in ("causal_conv1d_fn", "causal_conv1d_update")},
    "causal_conv1d.causal_conv1d_interface": _CONV,
    "causal_conv1d.cpp_functions": {
        "causal_conv1d_fwd_function": extensions.conv_fwd,
        "causal_conv1d_bwd_function": extensions.conv_bwd,
        "causal_conv1d_update_function": extensions.conv_update,
    },
    "selective_scan_cuda": {"fwd": extensions.scan_fwd, "bwd": extensions.scan_bwd},
    "selective_scan_cuda_core": _CORE,
    "selective_scan_cuda_oflex": {**_CORE, "fwd": extensions.oflex_fwd},
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": extensions.conv_fwd,
        "causal_conv1d_bwd": extensions.conv_bwd,
        "causal_conv1d_update": extensions.conv_update,
    },
}
PACKAGES = {name.rpartition(".")[0] for name in MODULES} - {""}


def install() -> list[str]:
    """Place modules of the names of mamba_ssm, causal_conv1d and the extensions that code calls directly in
    `sys.modules`; -> those placed. Call it before the code that imports them.

    What is installed under one of the names stays, and a warning says so. A mamba_ssm that was installed without its
    scan, as releases since July 2026 are, keeps its modules and gets ours as its extension.

    Raises:
        UserError: such a mamba_ssm was imported before, and knows already that it has no scan.
    """
    tops = [name for name in MODULES if "." not in name]
    real = {name for name in tops if _is_real(name)}
    interface = sys.modules.get("mamba_ssm.ops.selective_scan_interface")
    if "mamba_ssm" in real and interface and getattr(interface, "selective_scan_cuda", interface) is None:
        raise UserError(
            "mamba_ssm was imported before, without its scan: call longvision.compat.install() before that import"
        )
    placed = [name for name in MODULES if name.partition(".")[0] not in real and not _is_ours(name)]
    for name in placed:
        _place(name, MODULES[name])
    if real:
        warnings.warn(_told(real), stacklevel=2)
    return placed


def _told(real: set[str]) -> str:
    names = ", ".join(sorted(real))
    if "mamba_ssm" in real and "selective_scan_cuda" not in real:
        return f"{names}: installed and used as before; its scan was not built, and longvision's stands in for it"
    return f"{names}: installed and used as before; longvision's functions of these names step aside"


def _place(name: str, content: dict[str, Any]) -> None:
    module = ModuleType(name, f"longvision's functions under the names of {name}.")
    module.__spec__ = ModuleSpec(name, None, is_package=name in PACKAGES)  # importlib.util.find_spec asks for it
    if name in PACKAGES:
        module.__path__ = []
    vars(module).update(content, __longvision__=True)
    sys.modules[name] = module
    package, _, own = name.rpartition(".")
    if package:
        setattr(sys.modules[package], own, module)


def _is_ours(name: str) -> bool:
    return hasattr(sys.modules.get(name), "__longvision__")


def _is_real(name: str) -> bool:
    """Whether somebody else's module of that name can be imported."""
    if name in sys.modules:
        return not _is_ours(name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is not None:
        return spec is not None
    # Any folder of that name on the path is a package to Python, also one that holds results: not without code.
    return any(path for folder in spec.submodule_search_locations or () for path in Path(folder).rglob("*.py"))
