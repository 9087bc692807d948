"""Image sets and what happens to an image before a model sees it.

Names load on first use: reading one image needs neither Lightning nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longvision.data.augment import Augment, DenseAugment, DetectionAugment
    from longvision.data.config import (
        CocoData,
        DigitsData,
        FolderData,
        MaskFolderData,
        MostDigitsData,
        ParquetData,
        ScatteredDetectionData,
        ScatteredSegmentationData,
        VocData,
    )
    from longvision.data.datamodule import DataModule
    from longvision.data.io.images import find_images, read_image
    from longvision.data.transforms.input_spec import InputSpec

__all__ = [
    "Augment",
    "CocoData",
    "DataModule",
    "DenseAugment",
    "DetectionAugment",
    "DigitsData",
    "FolderData",
    "InputSpec",
    "MaskFolderData",
    "MostDigitsData",
    "ParquetData",
    "ScatteredDetectionData",
    "ScatteredSegmentationData",
    "VocData",
    "find_images",
    "read_image",
]
_HOME = {
    "DataModule": "datamodule",
    "InputSpec": "transforms.input_spec",
    "find_images": "io.images",
    "read_image": "io.images",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME.get(name, "augment" if name.endswith("Augment") else "config")
    return getattr(import_module(f"longvision.data.{home}"), name)
