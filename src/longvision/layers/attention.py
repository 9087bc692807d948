"""timm's transformer block for a float32 residual, and for images packed one behind another in a row."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionPoolLatent, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from longvision.layers.drop_path import dropped_by_image
from longvision.ops.common import cu_seqlens_of, widened

torch.fx.wrap("widened")  # it looks at dtypes that a symbolic trace does not know


class TransformerBlock(Block):
    """(B, M, D) -> (B, M, D). x + attention(norm(x)), then x + mlp(norm(x)) (arXiv 2010.11929).

    Parameters bear the names of timm's block.

    Args:
        dim: model width D.
        heads: attention heads.
        mlp_ratio: the MLP's inner width, in model widths.
        drop_path: probability that an image skips the attention, or the MLP, in training (stochastic depth).
        bias: whether projections, MLP and norms have one.
        qk_norm: whether queries and keys are normalised in each head (arXiv 2302.05442), with one scale a channel of a
            head, the same in all heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        bias: bool = True,
        qk_norm: bool = False,
    ) -> None:
        options: dict[str, Any] = {"qkv_bias": bias, "proj_bias": bias, "norm_layer": partial(LayerNorm, bias=bias)}
        super().__init__(dim, heads, mlp_ratio, drop_path=drop_path, **options)
        options["norm_layer"] = partial(HeadNorm, bias=bias)
        self.attn = PackedAttention(dim, heads, qk_norm=qk_norm, **options)

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
        q_MHd, k_MHd = self.q_norm(q_MHd), self.k_norm(k_MHd)
        return self.proj(block_diagonal_attention(q_MHd, k_MHd, v_MHd, cu_seqlens, lengths).flatten(1)[None])


class AttentionPool(AttentionPoolLatent):
    """(B, M, D) -> (B, D). A learned query attends to the tokens, then x + mlp(norm(x)) (MAP, arXiv 2106.04560).

    timm's, with normalised queries and keys and without biases. Parameters bear timm's names.

    Args:
        dim: model width D.
        heads: attention heads.
        mlp_ratio: the MLP's inner width, in model widths.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        norm: Any = partial(HeadNorm, bias=False)
        super().__init__(dim, num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=False, qk_norm=True, norm_layer=norm)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), bias=False)

    def forward(self, x_BMD: Tensor, cu_seqlens: Tensor | None = None, lengths: Sequence[int] | None = None) -> Tensor:
        """(B, M, D) -> (B, D); of S images packed in one row -> (S, D)."""
        if cu_seqlens is None or lengths is None:
            return super().forward(x_BMD)
        heads = (self.num_heads, self.head_dim)
        q_SHd = self.q_norm(self.q(self.latent)[0].unflatten(-1, heads)).expand(len(lengths), -1, -1)
        k_MHd, v_MHd = self.kv(x_BMD)[0].unflatten(-1, (2, *heads)).unbind(1)
        pooled_SHd = block_diagonal_attention(q_SHd, self.k_norm(k_MHd), v_MHd, cu_seqlens, lengths, queries=1)
        x_SD = self.proj(pooled_SHd.flatten(1))
        return x_SD + self.mlp(self.norm(x_SD))


def block_diagonal_attention(
    q_NHd: Tensor,
    k_MHd: Tensor,
    v_MHd: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    queries: int | None = None,
) -> Tensor:
    """(N, H, d), (M, H, d), (M, H, d) -> (N, H, d): attention within each of the sequences packed in a row.

    `queries`: of each sequence; None for as many as it has keys, so that N is M.

    In half precision on a GPU by torch's variable-length kernel, where it has one. Else sequence by sequence: on a CPU
    a mask of all M x M pairs takes 20 times as long for 20 sequences in 4,000 tokens.
    """
    asked = list(lengths) if queries is None else [queries] * len(lengths)
    if q_NHd.dtype in (torch.float16, torch.bfloat16) and _has_varlen(q_NHd.device, q_NHd.shape[-1]):
        boundaries = cu_seqlens if queries is None else cu_seqlens_of(asked, q_NHd.device)
        return _varlen(q_NHd, k_MHd, v_MHd, boundaries, cu_seqlens, max(asked), max(lengths))
    by_head = (x_MHd.transpose(0, 1) for x_MHd in (q_NHd, k_MHd, v_MHd))
    parts = (x_HMd.split(sizes, dim=1) for x_HMd, sizes in zip(by_head, (asked, list(lengths), list(lengths))))
    mixed = [F.scaled_dot_product_attention(*(x_HLd[None] for x_HLd in qkv))[0] for qkv in zip(*parts)]
    return torch.cat(mixed, dim=1).transpose(0, 1)


def _has_varlen(device: torch.device, width: int) -> bool:
    """FlashAttention 2, which it is, needs Ampere or later, and heads whose width is a multiple of 8, at most 256."""
    fits = width % 8 == 0 and width <= 256
    return fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen(q_NHd: Tensor, k_MHd: Tensor, v_MHd: Tensor, *boundaries_and_longest: Any) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q_NHd.contiguous(), k_MHd.contiguous(), v_MHd.contiguous(), *boundaries_and_longest)


class LayerNorm(nn.LayerNorm):
    """Reads the float32 residual and writes the dtype of its weights, for the projections behind it."""

    def __init__(self, dim: int, eps: float = 1e-6, **options: Any) -> None:
        super().__init__(dim, eps, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        weight, bias = widened(self.weight), None if self.bias is None else widened(self.bias)
        return F.layer_norm(widened(x), self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


class HeadNorm(LayerNorm):
    """Returns what it gets in the same dtype, as attention wants its queries, keys and values in one."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return super().forward(x).to(x.dtype)
