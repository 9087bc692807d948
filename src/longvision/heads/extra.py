"""Libraries that only dense tasks need, imported when a head is made."""

from importlib import import_module
from types import ModuleType


def dense_library(name: str) -> ModuleType:
    """Raises ValueError where it is not installed: the extra that brings it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this head needs {name}, which is not installed: in a clone of the repository, pip install '.[dense]'"
        ) from error
