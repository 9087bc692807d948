"""One residual block of Vim, also for people who put it in place of a transformer block."""

from timm.layers import DropPath
from torch import Tensor, nn

from longvision.layers.mixer import Direction, VimMixer
from longvision.layers.norm import RMSNorm


class VimBlock(nn.Module):
    """(B, M, D) -> (B, M, D). x + mixer(norm(x)): lines 2-21 of Algorithm 1, arXiv 2401.09417. There is no MLP.

    Takes the place of a pre-norm transformer block: same input, same output, any number of tokens.

    Args:
        dim: model width D.
        expand: inner width of the mixer as a multiple of D.
        state: states a channel of the scan.
        direction: see `longvision.layers.VimMixer`.
        reverse: see `longvision.layers.VimMixer`.
        drop_path: probability that a row of the batch skips the mixer in training (stochastic depth); packed
            sequences are one row.
        eps: of the normalisation.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        state: int = 16,
        direction: Direction = "ssm_conv",
        reverse: bool = False,
        drop_path: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, eps)
        self.mixer = VimMixer(dim, expand, state, direction, reverse)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32.

        `cu_seqlens` as in `longvision.ops.selective_scan`: images packed one behind the other.
        """
        return x_BMD + self.drop_path(self.mixer(self.norm(x_BMD), cu_seqlens)).to(x_BMD.dtype)
