"""Image sets and what happens to an image before a model sees it.

Names load on first use: reading one image needs neither Lightning nor torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "augment": ("Augment", "DenseAugment", "DetectionAugment"),
    "config": (
        "CocoData", "DigitsData", "FolderData", "MaskFolderData", "MostDigitsData", "ParquetData",
        "ScatteredDetectionData", "ScatteredSegmentationData", "ShardsData", "VocData",
    ),
    "datamodule": ("DataModule",),
    "io.images": ("find_images", "read_image"),
    "transforms.input_spec": ("InputSpec",),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = list(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"longvision.data.{_MODULE[name]}"), name)
