"""Features of packed images have the shape of one image's: a mark tells them apart."""

from typing import Any

import torch
from torch import Tensor

from longvision.errors import UserError
from longvision.types import PackedImages

_MARK = "of_packed_images"  # attribute of a tensor; what is computed from it has none


def marked(features: Tensor, images: Any) -> Tensor:
    """The same tensor, which `refuse_marked` knows again where `images` are packed; a compiler's graph has no marks."""
    if isinstance(images, PackedImages) and not torch.compiler.is_compiling():
        setattr(features, _MARK, True)
    return features


def refuse_marked(features: Tensor) -> None:
    """Raises UserError for features of packed images, which would be pooled as if they were of one."""
    if getattr(features, _MARK, False):
        raise UserError(
            f"features of shape {tuple(features.shape)} are of packed images, and would be pooled as those of one: "
            "pass images=, the PackedImages that they were computed from"
        )
