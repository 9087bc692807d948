"""One residual block of VMamba (arXiv 2401.10166)."""

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from longvision.layers.attention import LayerNorm
from longvision.layers.ss2d import SS2D


class VSSBlock(nn.Module):
    """(B, H, W, D) -> (B, H, W, D). x + op(norm(x)), then x + mlp(norm2(x)), where there is an MLP.

    Args:
        dim: D.
        inner: see `SS2D`.
        state: see `SS2D`.
        gated: see `SS2D`.
        mlp_ratio: the MLP's inner width, in widths D; 0 for none.
        drop_path: probability that an image skips the mixer, or the MLP, in training (stochastic depth).
    """

    def __init__(
        self, dim: int, inner: int, state: int = 1, gated: bool = False, mlp_ratio: float = 4.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.op = LayerNorm(dim, 1e-5), SS2D(dim, inner, state, gated)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.mlp = None
        if mlp_ratio > 0:
            self.norm2, self.mlp = LayerNorm(dim, 1e-5), Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D), in x's dtype: hand in float32 to keep the residual in float32."""
        x_BHWD = x_BHWD + self.drop_path(self.op(self.norm(x_BHWD)))
        return x_BHWD if self.mlp is None else x_BHWD + self.drop_path(self.mlp(self.norm2(x_BHWD)))
