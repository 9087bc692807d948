"""DeepViT (arXiv 2103.11886): a transformer whose heads exchange their attention maps, so that deep blocks do not all
come to attend alike."""

from contextlib import nullcontext
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.layers.attention import maybe_add_mask, resolve_self_attn_mask
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers import PatchEmbed
from longvision.layers.attention import LayerNorm, TransformerBlock
from longvision.layers.patch_embed import divisible
from longvision.models.base import build
from longvision.models.sequence import SequenceBackbone, check_at_least_one
from longvision.models.vit import init_linear_layers
from longvision.ops.common import autocasts, widened

# They look at dtypes and sizes that a symbolic trace does not know: it records the calls.
torch.fx.wrap("divisible")
torch.fx.wrap("widened")

Stem = Literal["linear", "conv"]
STEM_WIDTH = 64


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
        return F.conv2d(widened(map_BHMM), widened(weight_HH11), widened(bias_H))


class MapNorm(nn.BatchNorm2d):
    """(B, H, M, M) -> (B, H, M, M): BatchNorm over heads, computed in float32 whatever its weights and statistics are
    in. What activation checkpointing computes again does not count a second time in the statistics."""

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


class DeepBlock(TransformerBlock):
    """(B, M, D) -> (B, M, D). x + attention(LN(s x)) / s, then x + mlp(LN(s x)) / s.

    Args:
        dim: model width D.
        heads: attention heads.
        mlp_ratio: the MLP's inner width, in model widths.
        drop_path: probability that an image skips the attention, or the MLP, in training.
        attention: the attention, for Re-attention in place of timm's; None for timm's.
        scale: s. LayerNorm undoes it, but for its eps.
    """

    def __init__(
        self, dim: int, heads: int, mlp_ratio: float, drop_path: float, attention: nn.Module | None, scale: float
    ) -> None:
        super().__init__(dim, heads, mlp_ratio, drop_path)
        if attention is not None:
            self.attn = attention
        self.scale = scale
        # LN(s x) with an eps is LN(x) with eps / s².
        self.norm1, self.norm2 = (LayerNorm(dim, 1e-6 / scale**2) for _ in range(2))

    def forward(self, x_BMD: Tensor) -> Tensor:  # type: ignore[override]
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32."""
        x_BMD = x_BMD + self._unscaled(self.drop_path1(self.attn(self.norm1(x_BMD))))
        return x_BMD + self._unscaled(self.drop_path2(self.mlp(self.norm2(x_BMD))))

    def _unscaled(self, x_BMD: Tensor) -> Tensor:
        return x_BMD if self.scale == 1 else x_BMD / self.scale


class ConvStem(PatchEmbed):
    """(B, C, H, W) -> (B, gh * gw, D): two convolutions at half the size, then patches of half the side.

    Args:
        patch: side of a patch in the image, pixels; even.
        in_chans: channels of the image.
        dim: model width D.
        pad: fill an image whose size does not divide with zeros, right and below.
    """

    def __init__(self, patch: int, in_chans: int, dim: int, pad: bool = False) -> None:
        super().__init__(patch // 2, patch // 2, STEM_WIDTH, dim, pad)
        self.patch = self.stride = patch
        self.conv1 = nn.Conv2d(in_chans, STEM_WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.conv2 = nn.Conv2d(STEM_WIDTH, STEM_WIDTH, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM_WIDTH)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, gh * gw, D). Raises UserError for a size that does not divide."""
        x_BCHW = divisible(x_BCHW, self.conv1.in_channels, self.patch, self.stride, self.pad)
        x_BCHW = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_BCHW))))))
        return self.proj(x_BCHW).flatten(2).transpose(1, 2)


class DeepViT(SequenceBackbone):
    """(B, C, H, W) -> (B, num_classes).

    Args:
        embed_dim: model width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: the MLP's inner width, in model widths.
        re_attention: how many blocks, the last ones, have Re-attention; None for all.
        rescale: see `ReAttention`.
        scale: s of `DeepBlock`.
        stem: how patches are made: "linear" by one convolution as large as a patch, "conv" by `ConvStem`.
        **others: see `SequenceBackbone`.

    Raises:
        UserError: an unknown word, a number out of range, as more blocks with Re-attention than there are, or heads
            that do not divide the width.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 12,
        mlp_ratio: float = 3.0,
        re_attention: int | None = None,
        rescale: bool = False,
        scale: float = 1.0,
        stem: Stem = "linear",
        **others: Any,
    ) -> None:
        check_at_least_one(num_heads=num_heads, depth=depth)
        if embed_dim % num_heads:
            raise UserError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")
        if re_attention is not None and (type(re_attention) is not int or not 0 <= re_attention <= depth):
            raise UserError(
                f"re_attention {re_attention!r}: expected how many of the {depth} blocks have it, or None for all"
            )
        if scale <= 0:
            raise UserError(f"scale {scale}: expected a number above 0")
        if stem not in get_args(Stem):
            raise UserError(f"stem={stem!r} is unknown: choose {' or '.join(get_args(Stem))}")
        first = 0 if re_attention is None else depth - re_attention

        def block(i: int, drop_path: float) -> DeepBlock:
            own = ReAttention(embed_dim, num_heads, rescale, qkv_bias=True) if i >= first else None
            return DeepBlock(embed_dim, num_heads, mlp_ratio, drop_path, own, scale)

        super().__init__(block, LayerNorm, embed_dim=embed_dim, depth=depth, **others)
        if stem == "conv":
            linear = self.patch_embed
            if linear.patch % 2 or linear.stride != linear.patch:
                raise UserError(
                    f"stem='conv' halves the image first: expected an even patch_size and no stride of its own, not "
                    f"{linear.patch} and {linear.stride}"
                )
            self.patch_embed = ConvStem(linear.patch, self.in_chans, embed_dim, linear.pad)

    def _init_weights(self) -> None:
        """As timm's vision transformer; convolutions as torch's, as published."""
        super()._init_weights()
        init_linear_layers(self._blocks())


def _cfg(first_conv: str = "patch_embed.proj", size: int = 224, crop: float = 0.9) -> dict[str, Any]:
    return {
        "input_size": (3, size, size),
        "num_classes": 1000,
        "crop_pct": crop,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_conv,
        "classifier": "head",
        "license": "mit",
        "origin_url": "https://github.com/zhoudaquan/dvit_repo",
        "paper_ids": "arXiv:2103.11886",
    }


# ImageNet-1k top-1 as published: 79.1, 80.0, 80.9; S and L: 82.3, 83.1; L at 384: 84.25. Their files are on Google
# Drive, from where nothing is fetched here.
default_cfgs = generate_default_cfgs(
    {
        "deepvit_16.untrained": _cfg(),
        "deepvit_24.untrained": _cfg(),
        "deepvit_32.untrained": _cfg(),
        "deepvit_s.untrained": _cfg("patch_embed.conv1"),
        "deepvit_l.untrained": _cfg("patch_embed.conv1"),
        "deepvit_l_384.untrained": _cfg("patch_embed.conv1", 384, 1.0),
    }
)
_S = {"embed_dim": 396, "depth": 16, "re_attention": 5, "rescale": True, "scale": 0.5, "stem": "conv"}
_L = {"embed_dim": 420, "depth": 32, "re_attention": 12, "scale": 0.5, "stem": "conv"}


@register_model
def deepvit_16(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """16 blocks of width 384 with Re-attention, 24.4 million parameters."""
    return build(DeepViT, "deepvit_16", pretrained, **{"depth": 16, **kwargs})


@register_model
def deepvit_24(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """24 blocks of width 384 with Re-attention, 36.3 million parameters."""
    return build(DeepViT, "deepvit_24", pretrained, **{"depth": 24, **kwargs})


@register_model
def deepvit_32(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """32 blocks of width 384 with Re-attention, 48.1 million parameters."""
    return build(DeepViT, "deepvit_32", pretrained, **{"depth": 32, **kwargs})


@register_model
def deepvit_s(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """DeepViT-S as released: a convolutional stem, 16 blocks, Re-attention in the last 5, 27.3 million parameters."""
    return build(DeepViT, "deepvit_s", pretrained, **{**_S, **kwargs})


@register_model
def deepvit_l(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """DeepViT-L as released: a convolutional stem, 32 blocks, Re-attention in the last 12, 58.9 million parameters."""
    return build(DeepViT, "deepvit_l", pretrained, **{**_L, **kwargs})


@register_model
def deepvit_l_384(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """DeepViT-L at 384 pixels, 59.0 million parameters."""
    return build(DeepViT, "deepvit_l_384", pretrained, **{**_L, "img_size": 384, **kwargs})
