"""Root-mean-square normalisation that reads the float32 residual and writes the dtype of its weights."""

import torch
from torch import Tensor, nn

from longvision.layers.plain import runs_fused
from longvision.ops import rms_norm
from longvision.ops.rms_norm.reference import rms_norm_reference


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), computed in x's precision or better.

    The residual stream of Vim is float32 even where the weights are not; the output has the weights' dtype, so that
    the projections behind it run in theirs.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps
        self.fused = True  # see `set_fused`

    def forward(self, x_BMD: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (rms_norm if runs_fused(self, x_BMD) else rms_norm_reference)(x_BMD, self.weight, self.eps)
