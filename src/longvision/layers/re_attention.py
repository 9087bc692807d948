"""Re-attention (DeepViT, arXiv 2103.11886): heads exchange their attention maps."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from longvision.ops.common import autocasts, widened

torch.fx.wrap("widened")  # it looks at dtypes that a symbolic trace does not know


class ReAttention(Attention):
    """(B, M, D) -> (B, M, D). Each head's map becomes a learned mixture of all heads' maps, normalised over the batch.

    For timm's transformers too: `timm.create_model("vit_…", attn_layer=ReAttention)`.

    Args:
        dim: model width D.
        num_heads: attention heads H.
        rescale: multiply the maps by 1 / sqrt(D / H), as `deepvit_s` does.
        **others: see `timm.layers.Attention`.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, rescale: bool = False, device: Any = None, dtype: Any = None, **others: Any
    ) -> None:
        super().__init__(dim, num_heads, device=device, dtype=dtype, **others)
        self.fused_attn = False  # type: ignore[misc] # the maps are to be mixed
        self.reatten_matrix = HeadMixing(num_heads, num_heads, 1, device=device, dtype=dtype)
        self.var_norm = MapNorm(num_heads, device=device, dtype=dtype)
        self.map_scale = self.scale if rescale else 1.0

    def forward(self, x_BMD: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        qkv = self.qkv(x_BMD).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q_BHMd, k_BHMd, v_BHMd = qkv.unbind(0)
        map_BHMM = self.q_norm(q_BHMd) * self.scale @ self.k_norm(k_BHMd).mT
        mask = resolve_self_attn_mask(x_BMD.shape[1], map_BHMM, attn_mask, is_causal)
        map_BHMM = widened(maybe_add_mask(map_BHMM, mask)).softmax(-1)
        map_BHMM = self.var_norm(self.reatten_matrix(map_BHMM))
        map_BHMM = self.attn_drop(map_BHMM if self.map_scale == 1 else map_BHMM * self.map_scale)
        mixed_BMD = (map_BHMM.to(v_BHMd.dtype) @ v_BHMd).transpose(1, 2).flatten(2)
        mixed_BMD = self.norm(mixed_BMD)
        if self.gate is not None:
            mixed_BMD = mixed_BMD * self.gate(x_BMD).sigmoid()
        return self.proj_drop(self.proj(mixed_BMD))


class HeadMixing(nn.Conv2d):
    """(B, H, M, M) -> (B, H, M, M): a 1x1 convolution over heads, in float32 whatever the model is in.

    Entries of an even map are near 1 / M: the normalisation behind takes that away, and what half precision leaves of
    the rest would be mostly rounding. Softmax is taken in float32 for the same reason.
    """

    def forward(self, map_BHMM: Tensor) -> Tensor:
        """(B, H, M, M) -> (B, H, M, M), in float32 or better."""
        return _mixed(map_BHMM, self.weight, self.bias)  # type: ignore[arg-type]


@torch.fx.wrap  # what it does depends on the dtype
def _mixed(map_BHMM: Tensor, weight_HH11: Tensor, bias_H: Tensor) -> Tensor:
    with torch.autocast(map_BHMM.device.type, enabled=False) if autocasts(map_BHMM) else nullcontext():
        # as a product: a convolution with so few channels takes three times as long on a CPU
        map_BHK, weight_BHH = (
            widened(map_BHMM).flatten(2),
            widened(weight_HH11)[:, :, 0, 0].expand(len(map_BHMM), -1, -1),
        )
        return torch.baddbmm(widened(bias_H)[:, None], weight_BHH, map_BHK).unflatten(2, map_BHMM.shape[2:])


class MapNorm(nn.modules.batchnorm._NormBase):
    """(B, H, M, M) -> (B, H, M, M): BatchNorm over heads, computed in float32 whatever its weights and statistics are
    in. What activation checkpointing computes again does not count a second time in the statistics.

    No subclass of torch's BatchNorm: `convert_sync_batchnorm` would put a SyncBatchNorm in its place, without either.
    The statistics of each device are over M² entries an image, so that they need not be gathered.
    """

    def forward(self, map_BHMM: Tensor) -> Tensor:
        """(B, H, M, M) -> (B, H, M, M), in float32 or better."""
        statistics = self.running_mean, self.running_var, self.num_batches_tracked
        return _normalised(map_BHMM, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


@torch.fx.wrap  # what it does depends on dtypes, and on who calls it
def _normalised(
    map_BHMM: Tensor,
    mean_H: Any,
    var_H: Any,
    count: Any,
    weight_H: Tensor,
    bias_H: Tensor,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    wide_mean_H, wide_var_H = widened(mean_H), widened(var_H)  # themselves, where they are wide enough
    counts = training and not _in_backward()
    if counts:
        count.add_(1)
    share = (1 / float(count) if momentum is None else momentum) if counts else 0.0
    x_BHMM = F.batch_norm(
        widened(map_BHMM), wide_mean_H, wide_var_H, widened(weight_H), widened(bias_H), training, share, eps
    )
    if counts and wide_mean_H is not mean_H:
        mean_H.copy_(wide_mean_H)
        var_H.copy_(wide_var_H)
    return x_BHMM


def _in_backward() -> bool:
    """Whether a backward pass computes something again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
