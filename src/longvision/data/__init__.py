"""Image sets and what happens to an image before a model sees it.

Names load on first use: reading one picture needs neither Lightning nor scikit-learn nor pyarrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longvision.data.io.images import UnreadableImage, find_images, read_image
    from longvision.data.module import ClassificationData, DigitsData, FolderData, MostDigitsData, ParquetData
    from longvision.data.sources.digits import load_digits_split
    from longvision.data.transforms.classification import DIGITS_AUGMENT, Augment, batch_mixup, train_transform
    from longvision.data.transforms.preprocess import Preprocess

_HOME = {
    "Augment": "transforms.classification",
    "DIGITS_AUGMENT": "transforms.classification",
    "batch_mixup": "transforms.classification",
    "train_transform": "transforms.classification",
    "load_digits_split": "sources.digits",
    "UnreadableImage": "io.images",
    "find_images": "io.images",
    "read_image": "io.images",
    "ClassificationData": "module",
    "DigitsData": "module",
    "FolderData": "module",
    "MostDigitsData": "module",
    "ParquetData": "module",
    "Preprocess": "transforms.preprocess",
}

__all__ = [
    "DIGITS_AUGMENT",
    "Augment",
    "ClassificationData",
    "DigitsData",
    "FolderData",
    "MostDigitsData",
    "ParquetData",
    "Preprocess",
    "UnreadableImage",
    "batch_mixup",
    "find_images",
    "load_digits_split",
    "read_image",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"longvision.data.{_HOME[name]}"), name)
