"""Libraries that only dense tasks need, imported when a head is made."""

from importlib import import_module
from types import ModuleType

from longvision.errors import UserError


def dense_library(name: str) -> ModuleType:
    """Raises UserError where it is not installed: the extra that brings it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"this head needs {name}, which is not installed: in a clone of the repository, pip install '.[dense]'"
        ) from error
