"""Trained models on images. Names load on first use: a description is read before torch is loaded."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longvision.inference.config import InferenceConfig
    from longvision.inference.description import Description
    from longvision.inference.predictor import Predictor
    from longvision.inference.results import ClassResult, LabelResult, MaskResult, ObjectResult

_MODULES = {
    "InferenceConfig": "config",
    "Description": "description",
    "Predictor": "predictor",
    "ClassResult": "results",
    "LabelResult": "results",
    "MaskResult": "results",
    "ObjectResult": "results",
}

__all__ = ["ClassResult", "Description", "InferenceConfig", "LabelResult", "MaskResult", "ObjectResult", "Predictor"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"longvision.inference.{_MODULES[name]}"), name)
