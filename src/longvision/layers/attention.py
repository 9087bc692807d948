"""timm's transformer block for a float32 residual, and for images packed one behind another in a row."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from longvision.layers.drop_path import dropped_by_image
from longvision.ops.common import widened

torch.fx.wrap("widened")  # it looks at dtypes that a symbolic trace does not know


class TransformerBlock(Block):
    """(B, M, D) -> (B, M, D). x + attention(norm(x)), then x + mlp(norm(x)) (arXiv 2010.11929).

    Parameters bear the names of timm's block.

    Args:
        dim: model width D.
        heads: attention heads.
        mlp_ratio: the MLP's inner width, in model widths.
        drop_path: probability that an image skips the attention, or the MLP, in training (stochastic depth).
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__(dim, heads, mlp_ratio, qkv_bias=True, drop_path=drop_path, norm_layer=LayerNorm)
        self.attn = PackedAttention(dim, heads, qkv_bias=True)

    def forward(  # type: ignore[override]
        self, x_BMD: Tensor, cu_seqlens: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32.

        `cu_seqlens` and `lengths`: of images packed in one row, int32 (S + 1,) where x is, and numbers.
        """
        mixed_BMD = self.attn(self.norm1(x_BMD), cu_seqlens, lengths)
        x_BMD = x_BMD + dropped_by_image(self.drop_path1, mixed_BMD, cu_seqlens)
        return x_BMD + dropped_by_image(self.drop_path2, self.mlp(self.norm2(x_BMD)), cu_seqlens)


class PackedAttention(Attention):
    """timm's attention; of packed images each attends to itself alone."""

    def forward(  # type: ignore[override]
        self, x_BMD: Tensor, cu_seqlens: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        if cu_seqlens is None or lengths is None:
            return super().forward(x_BMD)
        q_MHd, k_MHd, v_MHd = self.qkv(x_BMD)[0].unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(1)
        return self.proj(block_diagonal_attention(q_MHd, k_MHd, v_MHd, cu_seqlens, lengths).flatten(1)[None])


def block_diagonal_attention(
    q_MHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, cu_seqlens: Tensor, lengths: Sequence[int]
) -> Tensor:
    """(M, H, d) each -> (M, H, d): attention within each of the sequences packed in a row.

    In half precision on a GPU by torch's variable-length kernel, where it has one. Else sequence by sequence: on a CPU
    a mask of all M x M pairs takes 20 times as long for 20 sequences in 4,000 tokens.
    """
    if q_MHd.dtype in (torch.float16, torch.bfloat16) and _has_varlen(q_MHd.device):
        return _varlen(q_MHd, k_MHd, v_MHd, cu_seqlens, max(lengths))
    sequences = zip(*(x_MHd.transpose(0, 1).split(list(lengths), dim=1) for x_MHd in (q_MHd, k_MHd, v_MHd)))
    mixed = [F.scaled_dot_product_attention(*(x_HLd[None] for x_HLd in qkv))[0] for qkv in sequences]
    return torch.cat(mixed, dim=1).transpose(0, 1)


def _has_varlen(device: torch.device) -> bool:
    """FlashAttention 2, which it is, needs Ampere or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen(q_MHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, cu_seqlens: Tensor, longest: int) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    q_MHd, k_MHd, v_MHd = q_MHd.contiguous(), k_MHd.contiguous(), v_MHd.contiguous()
    return varlen_attn(q_MHd, k_MHd, v_MHd, cu_seqlens, cu_seqlens, longest, longest)


class LayerNorm(nn.LayerNorm):
    """Reads the float32 residual and writes the dtype of its weights, for the projections behind it."""

    def __init__(self, dim: int, eps: float = 1e-6, **options: Any) -> None:
        super().__init__(dim, eps, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        weight, bias = widened(self.weight), widened(self.bias)
        return F.layer_norm(widened(x), self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)
