"""Models, registered with timm when this package is imported."""

from longvision.models.vim import Vim

__all__ = ["Vim"]
