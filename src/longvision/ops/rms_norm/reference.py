"""Root-mean-square normalisation in plain torch: the specification for kernels, and what runs where there are none."""

import torch
from torch import Tensor

from longvision.ops import common


def rms_norm_reference(x_BMD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """(..., D) -> (..., D) in the weight's dtype; arguments as in `rms_norm`."""
    x_BMD = common.widened(x_BMD)
    inverse_BM1 = torch.rsqrt(x_BMD.square().mean(-1, keepdim=True) + eps)
    return (x_BMD * inverse_BM1 * weight_D).to(weight_D.dtype)
