"""Models, registered with timm when this package is imported."""

from longvision.models.pyramid import FeaturePyramid
from longvision.models.vim import Vim

__all__ = ["FeaturePyramid", "Vim"]
