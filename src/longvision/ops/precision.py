"""Which precision a fused op stores its tensors in."""

import torch
from torch import Tensor


def mixed_dtype(tensor: Tensor) -> torch.dtype:
    """The tensor's, or inside autocast the lower one that a matrix product would use; autocast leaves float64 alone."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
