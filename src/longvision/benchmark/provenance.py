"""Where a number comes from: device, versions, commit, date."""

import datetime
import platform
import re
import subprocess
from pathlib import Path

import timm
import torch

from longvision.errors import UserError
from longvision.version import __version__

PACKAGE = Path(__file__).parents[1]


def provenance() -> dict[str, str]:
    """The columns that close every row."""
    return {
        "longvision": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "commit": commit(PACKAGE),
        "date": datetime.date.today().isoformat(),
    }


def choose_device(name: str) -> str:
    """The one named, or cuda where there is one. Raises UserError for cuda where there is none."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError("--device cuda: torch sees no CUDA device here: use --device cpu")
    return name or ("cuda" if there else "cpu")


def device_name(device: str) -> str:
    """Of a processor with the instructions that torch finds on it: "AMD EPYC (AVX2)"."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        match = None
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def commit(folder: Path) -> str:
    """Of a folder that git tracks, "+dirty" if it was changed since; "" for an installed package.

    An environment inside a checkout of something else is not ours: hence the question whether the file is tracked.
    """
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return ""
    name = _git(folder, "rev-parse", "--short", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".")
    return f"{name}+dirty" if name and changes else name or ""


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *words], cwd=folder, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
