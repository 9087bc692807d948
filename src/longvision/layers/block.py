"""One residual block of Vim, also for people who put it in place of a transformer block."""

from timm.layers import DropPath
from torch import Tensor, nn

from longvision.layers.bare import is_bare
from longvision.layers.mixer import Direction, VimMixer
from longvision.layers.norm import RMSNorm
from longvision.ops import mamba_block


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
        if self._is_one_op():
            mixer, norm = self.mixer, self.norm
            weights = mixer.in_proj.weight, mixer.out_proj.weight
            return mamba_block(x_BMD, norm.weight, mixer.walks(), *weights, cu_seqlens, norm.eps)
        return x_BMD + self.drop_path(self.mixer(self.norm(x_BMD), cu_seqlens)).to(x_BMD.dtype)

    def _is_one_op(self) -> bool:
        """Whether nobody put anything between or around the parts."""
        drops = self.training and not isinstance(self.drop_path, nn.Identity)
        parts = (self.norm, RMSNorm), (self.mixer, VimMixer), (self.mixer.in_proj, nn.Linear)
        bare = all(is_bare(*part) for part in (*parts, (self.mixer.out_proj, nn.Linear)))
        return bare and not drops and self.mixer.in_proj.bias is None and self.mixer.out_proj.bias is None
