"""Models, registered with timm when this package is imported: each of its modules may hold a family of them."""

from importlib import import_module
from pkgutil import iter_modules

import timm

from longvision.models.pyramid import FeaturePyramid, has_pyramid, register_pyramid

_LATER = {"backbone", "cost", "memory", "nested", "pruned_efficientvit", "weights"}  # imported where they are used

NAMES: list[str] = []  # of the models registered here, pyramids left out
for _module in iter_modules(__path__):
    if _module.name not in _LATER:
        import_module(f"{__name__}.{_module.name}")
        NAMES += timm.list_models(module=_module.name)
for _name in filter(has_pyramid, NAMES):
    register_pyramid(_name)

import longvision.models.pruned_efficientvit  # noqa: E402, F401 registers what `longvision prune` writes
from longvision.models.arm import ARM  # noqa: E402
from longvision.models.deepvit import DeepViT  # noqa: E402
from longvision.models.localvim import LocalVim  # noqa: E402
from longvision.models.mambareg import MambaReg  # noqa: E402
from longvision.models.navit import NaViT  # noqa: E402
from longvision.models.vim import Vim  # noqa: E402
from longvision.models.vit import ViT  # noqa: E402
from longvision.models.vmamba import VMamba  # noqa: E402

__all__ = [
    "ARM",
    "NAMES",
    "DeepViT",
    "FeaturePyramid",
    "LocalVim",
    "MambaReg",
    "NaViT",
    "VMamba",
    "ViT",
    "Vim",
    "register_pyramid",
]
