"""One residual block of VMamba (arXiv 2401.10166)."""

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from longvision.layers.attention import LayerNorm
from longvision.layers.plain import anybody_watches, is_plain
from longvision.layers.ss2d import SS2D
from longvision.ops.common import is_unseen

CHUNK = 2048  # pixels


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
        x_BHWD = x_BHWD + self.drop_path(self.op(self.norm(x_BHWD))).to(x_BHWD.dtype)
        if self.mlp is None:
            return x_BHWD
        if self._goes_in_chunks(x_BHWD):
            return self._with_mlp_in_chunks(x_BHWD)
        return x_BHWD + self.drop_path(self.mlp(self.norm2(x_BHWD))).to(x_BHWD.dtype)

    def _goes_in_chunks(self, x_BHWD: Tensor) -> bool:
        """Of a large map on a CPU, without gradients, and where nobody watches the layers."""
        if isinstance(x_BHWD, torch.fx.Proxy) or self.training or torch.is_grad_enabled() or not is_unseen():
            return False
        layers = self.norm2, *self.mlp.modules()  # type: ignore[union-attr]
        is_large = x_BHWD.device.type == "cpu" and x_BHWD[..., 0].numel() > CHUNK
        return is_large and not anybody_watches() and all(is_plain(layer, type(layer)) for layer in layers)

    def _with_mlp_in_chunks(self, x_BHWD: Tensor) -> Tensor:
        """What is inside of the MLP stays in the caches: at 1024 x 1024 pixels that saves a third of its time."""
        x_ND = x_BHWD.flatten(0, 2)
        out_ND = torch.empty_like(x_ND)
        for rows_RD, out_RD in zip(x_ND.split(CHUNK), out_ND.split(CHUNK)):
            torch.add(rows_RD, self.mlp(self.norm2(rows_RD)), out=out_RD)  # type: ignore[misc]
        return out_ND.view_as(x_BHWD)
