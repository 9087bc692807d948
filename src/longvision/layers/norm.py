"""Root-mean-square normalisation that reads the float32 residual and writes the dtype of its weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), computed in x's precision or better.

    The residual stream of Vim is float32 even where the weights are not; the output has the weights' dtype, so that
    the projections behind it run in theirs.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_BMD: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        dtype = torch.promote_types(x_BMD.dtype, torch.float32)
        normed = F.rms_norm(x_BMD.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps)
        return normed.to(self.weight.dtype)
