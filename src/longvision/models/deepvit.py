"""DeepViT (arXiv 2103.11886): a transformer whose heads exchange their attention maps, so that deep blocks do not all
come to attend alike."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers import PatchEmbed
from longvision.layers.attention import LayerNorm, TransformerBlock
from longvision.layers.patch_embed import divisible
from longvision.layers.re_attention import ReAttention
from longvision.models.base import build
from longvision.models.published import imagenet
from longvision.models.sequence import SequenceBackbone, check_at_least_one
from longvision.models.vit import init_linear_layers

torch.fx.wrap("divisible")  # it looks at sizes that a symbolic trace does not know

Stem = Literal["linear", "conv"]
STEM_WIDTH = 64


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


def _cfg(accuracy: float, first_conv: str = "patch_embed.proj", size: int = 224, crop: float = 0.9) -> dict[str, Any]:
    return imagenet(
        accuracy,
        input_size=(3, size, size),
        crop_pct=crop,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        first_conv=first_conv,
        license="mit",
        origin_url="https://github.com/zhoudaquan/dvit_repo",
        paper_ids="arXiv:2103.11886",
    )


# The files are on Google Drive, from where nothing is fetched here.
default_cfgs = generate_default_cfgs(
    {
        "deepvit_16.untrained": _cfg(79.1),
        "deepvit_24.untrained": _cfg(80.0),
        "deepvit_32.untrained": _cfg(80.9),
        "deepvit_s.untrained": _cfg(82.3, "patch_embed.conv1"),
        "deepvit_l.untrained": _cfg(83.1, "patch_embed.conv1"),
        "deepvit_l_384.untrained": _cfg(84.25, "patch_embed.conv1", 384, 1.0),
    }
)
_S = {"embed_dim": 396, "depth": 16, "re_attention": 5, "rescale": True, "scale": 0.5, "stem": "conv"}
_L = {"embed_dim": 420, "depth": 32, "re_attention": 12, "scale": 0.5, "stem": "conv"}


def _released(name: str, pretrained: bool, released: dict[str, Any], kwargs: dict[str, Any]) -> DeepViT:
    """Of fewer blocks, where fewer are asked for, all may be among the last ones."""
    given = {**released, **kwargs}
    if "re_attention" not in kwargs and type(given["depth"]) is int:
        given["re_attention"] = max(0, min(given["re_attention"], given["depth"]))
    return build(DeepViT, name, pretrained, **given)


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
    return _released("deepvit_s", pretrained, _S, kwargs)


@register_model
def deepvit_l(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """DeepViT-L as released: a convolutional stem, 32 blocks, Re-attention in the last 12, 58.9 million parameters."""
    return _released("deepvit_l", pretrained, _L, kwargs)


@register_model
def deepvit_l_384(pretrained: bool = False, **kwargs: Any) -> DeepViT:
    """DeepViT-L at 384 pixels, 59.0 million parameters."""
    return _released("deepvit_l_384", pretrained, {**_L, "img_size": 384}, kwargs)
