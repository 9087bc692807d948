"""One residual block of Vim, also for people who put it in place of a transformer block."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from longvision.layers.drop_path import dropped_by_image
from longvision.layers.mixer import Direction, VimMixer
from longvision.layers.norm import RMSNorm
from longvision.layers.plain import is_plain, state_of
from longvision.ops import BoundBlock
from longvision.ops.common import is_unseen


class VimBlock(nn.Module):
    """(B, M, D) -> (B, M, D). x + mixer(norm(x)): lines 2-21 of Algorithm 1, arXiv 2401.09417. There is no MLP.

    Takes the place of a pre-norm transformer block: same input, same output, any number of tokens. It runs as one op;
    where a hook, an adapter or anything else has been put on one of its layers, the layers are called one by one.

    Args:
        dim: model width D.
        state: states a channel of the scan.
        direction: see `longvision.layers.VimMixer`.
        reverse: see `longvision.layers.VimMixer`.
        drop_path: probability that an image skips the mixer in training (stochastic depth).
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
        self._kept: tuple[list | None, BoundBlock | None] = None, None  # a state, and what was read in it

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32.

        `cu_seqlens` as in `longvision.ops.selective_scan`: images packed one behind the other.
        """
        bound = None if isinstance(x_BMD, torch.fx.Proxy) else self.bound()
        if bound is not None:
            return bound(x_BMD, cu_seqlens)
        mixed_BMD = self.mixer(self.norm(x_BMD), cu_seqlens)
        return x_BMD + dropped_by_image(self.drop_path, mixed_BMD, cu_seqlens).to(x_BMD.dtype)

    def bound(self) -> BoundBlock | None:
        """The op with what it reads of the layers; None where they are to be called.

        To look whether anything was changed takes a tenth of the time that it takes to read the layers.
        """
        if not is_unseen():
            return self._read()
        state = state_of(self)
        kept, bound = self._kept
        if state != kept:
            bound = self._read()
            registered = {id(parameter) for parameter in self.parameters()}
            told = bound is None or all(id(tensor) in registered for tensor in bound.tensors)
            self._kept = (state, bound) if told else (None, None)  # the state tells of registered parameters alone
        return bound

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": (None, None)}  # for a copy, and for another process

    def _read(self) -> BoundBlock | None:
        directions = self.mixer.directions_to_read() if self.fused and self._adds_nothing() else None
        if directions is None:
            return None
        own, norm = self.mixer, self.norm
        return BoundBlock(directions, own.in_proj.weight, own.out_proj.weight, norm.weight, norm.eps)

    def _adds_nothing(self) -> bool:
        """Whether nobody put anything between or around the parts, none is skipped by chance, and the norm is fused:
        the mixer's own switch is asked for where it gives its directions."""
        drop_path, norm = self.drop_path, self.norm
        skips_none = is_plain(drop_path, nn.Identity) or (is_plain(drop_path, DropPath) and not drop_path.training)
        return skips_none and is_plain(norm, RMSNorm) and norm.fused and is_plain(self.mixer, VimMixer)
