"""Two backbones as somebody would add them: each in one file, here in the same. Importing it registers them."""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from longvision.layers.maps import MapConv2d
from longvision.models.base import build
from longvision.models.hierarchy import HierarchyBackbone, Stage
from longvision.models.sequence import SequenceBackbone


class AttentionBlock(nn.Module):
    """x + attention(norm(x)): (B, M, D) -> (B, M, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x_BMD: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x_BMD)).chunk(3, dim=-1)
        return x_BMD + self.proj(torch.nn.functional.scaled_dot_product_attention(q, k, v))


class TinyTransformer(SequenceBackbone):
    """A sequence: what stands before and behind the blocks is SequenceBackbone's."""

    def __init__(self, *, embed_dim: int = 16, depth: int = 3, **others: Any) -> None:
        super().__init__(
            lambda i, rate: AttentionBlock(embed_dim), nn.LayerNorm, embed_dim=embed_dim, depth=depth, **others
        )


class Halved(nn.Linear):
    """(B, H, W, D) -> (B, H / 2, W / 2, 2 D)."""

    def __init__(self, dim: int) -> None:
        super().__init__(4 * dim, 2 * dim)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return super().forward(torch.cat([x_BHWD[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1))


class TinyMaps(HierarchyBackbone):
    """A hierarchy of maps: what stands behind the stages is HierarchyBackbone's."""

    def __init__(
        self, *, width: int = 8, depth: int = 3, in_chans: int = 3, num_classes: int = 1000, pool: str = "mean",
        drop_rate: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(width * 2 ** (depth - 1), in_chans, num_classes, pool, drop_rate)
        self.patch_embed = nn.Sequential(MapConv2d(in_chans, width, 2, 2), nn.GELU())
        scales = [(width * 2**i, 2 * 2**i) for i in range(depth)]
        stages = [
            Stage([nn.Sequential(nn.Linear(wide, wide), nn.GELU())], Halved(wide) if i < depth - 1 else None)
            for i, (wide, _) in enumerate(scales)
        ]
        self._add_stages(stages, nn.LayerNorm(self.num_features), scales)
        self._init_head()


def _cfg(first_conv: str) -> dict[str, Any]:
    return {"input_size": (3, 16, 16), "num_classes": 1000, "first_conv": first_conv, "classifier": "head"}


default_cfgs = generate_default_cfgs(
    {"tiny_transformer_patch4_16.untrained": _cfg("patch_embed.proj"), "tiny_maps_16.untrained": _cfg("patch_embed.0")}
)


@register_model
def tiny_transformer_patch4_16(pretrained: bool = False, **kwargs: Any) -> TinyTransformer:
    return build(
        TinyTransformer, "tiny_transformer_patch4_16", pretrained, **{"img_size": 16, "patch_size": 4, **kwargs}
    )


@register_model
def tiny_maps_16(pretrained: bool = False, **kwargs: Any) -> TinyMaps:
    return build(TinyMaps, "tiny_maps_16", pretrained, **kwargs)
