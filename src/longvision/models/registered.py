"""What timm's registry says of a model, before it is made."""

import timm
from torch import nn


def is_ours(stem: str) -> bool:
    """Whether a registered name is a model of longvision."""
    return timm.model_entrypoint(stem).__module__.startswith("longvision.")


def kind_of(stem: str) -> type[nn.Module]:
    """The class of a registered name, as its function says; nn.Module where it says none."""
    kind = timm.model_entrypoint(stem).__annotations__.get("return")
    return kind if isinstance(kind, type) else nn.Module
