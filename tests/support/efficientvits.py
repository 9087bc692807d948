"""A small EfficientViT with weights that nothing makes vanish: fresh ones begin with norms at zero."""

from typing import Any

import timm
import torch
from torch import nn

SMALL: dict[str, Any] = {"embed_dim": [32, 32, 48], "depth": [1, 1, 2], "num_heads": [2, 2, 3], "key_dim": [8, 8, 8]}


def make(name: str = "efficientvit_m0", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = timm.create_model(name, **{**SMALL, "img_size": 64, "num_classes": 5, **options})
    return randomised(model)


@torch.no_grad()
def randomised(model: Any) -> Any:
    """In evaluation mode, with norms as a trained model may have them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.5)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    for name, parameter in model.named_parameters():
        if "attention_biases" in name:
            parameter.normal_()
    return model.eval()
