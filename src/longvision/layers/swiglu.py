"""The gated MLP of LLaMA (arXiv 2002.05202), with its names."""

import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """(..., D) -> (..., D): w3(SiLU(w1 x) * w2 x).

    Args:
        dim: width D.
        hidden: inner width.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.w3(F.silu(self.w1(x)) * self.w2(x))
