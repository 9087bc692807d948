"""Older files of VMamba under the names and in the shapes of the newer ones, which are ours."""

import re

from torch import Tensor, nn

# What stands in the file -> what is in ours, one after the other.
RENAMED = [
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^(norm|head)\.", r"classifier.\1."),
]


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the newer names."""
    found = {}
    for name, weight in weights.items():
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        found[name] = weight
    return found


def from_released(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """With the newer names, and a Linear's weights where the file has those of the 1 x 1 convolution that it is."""
    own = model.state_dict()
    found = renamed(weights)
    for name, weight in found.items():
        if weight.ndim == 4 and weight.shape[2:] == (1, 1) and name in own and own[name].ndim == 2:
            found[name] = weight.flatten(1)
    return found
