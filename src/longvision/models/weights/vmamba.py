"""Files of VMamba's other versions under the names and in the shapes of the released ones, which are ours."""

import re

from torch import Tensor, nn

# What stands in the file -> what is in ours, one after the other.
RENAMED = [
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^(norm|head)\.", r"classifier.\1."),
    (r"\.(x_proj|dt_projs)\.weight$", r".\1_weight"),  # of the authors' model in one file
]


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the released names."""
    found = {}
    for name, weight in weights.items():
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        found[name] = weight
    return found


def from_released(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """With the released names, a Linear's weights where the file has those of the 1 x 1 convolution that it is, and
    projections of the four directions apart where they are in one. Those of other families stay as they are."""
    if not any(name.endswith(".A_logs") for name in weights):
        return weights
    own = model.state_dict()
    found = renamed(weights)
    for name, weight in found.items():
        is_convolution = weight.ndim == 4 and weight.shape[2:] == (1, 1)
        are_together = weight.ndim == 2 and name.endswith((".x_proj_weight", ".dt_projs_weight"))
        if (is_convolution or are_together) and name in own and own[name].numel() == weight.numel():
            found[name] = weight.reshape(own[name].shape)
    return found
