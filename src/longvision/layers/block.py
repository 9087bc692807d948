"""One residual block of Vim, also for people who put it in place of a transformer block."""

from timm.layers import DropPath
from torch import Tensor, nn

from longvision.layers.mixer import Direction, VimMixer
from longvision.layers.norm import RMSNorm
from longvision.layers.plain import is_plain, runs_fused
from longvision.ops import mixer


class VimBlock(nn.Module):
    """(B, M, D) -> (B, M, D). x + mixer(norm(x)): lines 2-21 of Algorithm 1, arXiv 2401.09417. There is no MLP.

    Takes the place of a pre-norm transformer block: same input, same output, any number of tokens. It runs as one op;
    where a hook, an adapter or anything else has been put on one of its layers, the layers are called one by one.

    Args:
        dim: model width D.
        state: states a channel of the scan.
        direction: see `longvision.layers.VimMixer`.
        reverse: see `longvision.layers.VimMixer`.
        drop_path: probability that a row of the batch skips the mixer in training (stochastic depth); packed
            sequences are one row.
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        direction: Direction = "ssm_conv",
        reverse: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = VimMixer(dim, state, direction, reverse)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.fused = True  # see `set_fused`

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32.

        `cu_seqlens` as in `longvision.ops.selective_scan`: images packed one behind the other.
        """
        own, norm = self.mixer, self.norm
        directions = own.directions_to_read() if runs_fused(self, x_BMD) and self._adds_nothing() else None
        if directions is not None:
            weights = own.in_proj.weight, own.out_proj.weight, norm.weight
            return mixer(x_BMD, directions, *weights, cu_seqlens, residual=True, eps=norm.eps)
        return x_BMD + self.drop_path(own(norm(x_BMD), cu_seqlens)).to(x_BMD.dtype)

    def _adds_nothing(self) -> bool:
        """Whether nobody put anything between or around the parts, none is skipped by chance, and the norm is fused:
        the mixer's own switch is asked for where it gives its directions."""
        drop_path, norm = self.drop_path, self.norm
        skips_none = is_plain(drop_path, nn.Identity) or (is_plain(drop_path, DropPath) and not drop_path.training)
        return skips_none and is_plain(norm, RMSNorm) and norm.fused and is_plain(self.mixer, VimMixer)
