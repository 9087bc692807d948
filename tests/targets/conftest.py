"""Tests of what the kernels are compiled to for other processors: `pytest -m targets`, and not without being asked."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """They compile for a minute."""
    return True if "targets" not in config.option.markexpr else None
