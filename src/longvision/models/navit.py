"""NaViT (arXiv 2307.06304): a vision transformer for images of every resolution and aspect ratio, packed in training.

What the paper says in words is taken as follows. Query-key normalisation: a LayerNorm of each head's queries and keys
behind their projection, its scale shared by the heads, as for the ViT-22B (arXiv 2302.05442) that it cites. No biases:
in no projection, MLP or norm of the blocks and of the pooling; the patch embedding and the classifier have theirs.
"""

from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from longvision.layers.attention import AttentionPool
from longvision.models.base import build
from longvision.models.published import imagenet
from longvision.models.sequence import Layout
from longvision.models.vit import ViT
from longvision.ops.common import cu_seqlens_of


class NaViT(ViT):
    """(B, C, H, W) or PackedImages -> (B, num_classes), of each image's own patches alone.

    Args:
        embed_dim: model width D.
        num_heads: attention heads; None for one of each 64 channels.
        mlp_ratio: an MLP's inner width, in model widths.
        cls_token: see `SequenceBackbone`; there is none here.
        positions: see `SequenceBackbone`. An embedding of the row plus one of the column: the paper (section 3.4) finds
            a sum better than a product or a stack.
        **others: see `SequenceBackbone`; `pool` may be "map" too, and is where it is None: a learned query attends to
            an image's patches.

    Raises:
        UserError: an unknown word, a number out of range, or heads that do not divide the width.
    """

    own_pools = ("map",)
    pool_names = ("attn_pool",)
    bias, qk_norm = False, True

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        cls_token: Any = "none",
        positions: Any = "factorised_learned",
        **others: Any,
    ) -> None:
        heads = max(1, embed_dim // 64) if num_heads is None else num_heads
        shape: dict[str, Any] = {"embed_dim": embed_dim, "num_heads": heads, "mlp_ratio": mlp_ratio}
        super().__init__(**shape, cls_token=cls_token, positions=positions, **others)
        self.heads, self.mlp_ratio = heads, mlp_ratio
        self.attn_pool: AttentionPool | None = None
        self._fit_pool()

    def _fit_pool(self) -> None:
        """An attention pooling where it is used, and none elsewhere: its parameters would get no gradient."""
        if self.pool != "map":
            self.attn_pool = None
        elif self.attn_pool is None:
            like = self.patch_embed.proj.weight
            self.attn_pool = AttentionPool(self.embed_dim, self.heads, self.mlp_ratio).to(like.device, like.dtype)
            for module in self.attn_pool.modules():
                if isinstance(module, nn.Linear):
                    trunc_normal_(module.weight, std=0.02)

    def _pooled(self, x: Tensor, layout: Layout | None) -> Tensor:
        if self.attn_pool is None:
            return super()._pooled(x, layout)
        patches, _ = self._split(x, layout.packing if layout is not None else None)
        if layout is None or layout.packing is None:
            return self.attn_pool(patches[0])
        lengths = [part_1MD.shape[1] for part_1MD in patches]
        return self.attn_pool(torch.cat(list(patches), dim=1), cu_seqlens_of(lengths, x.device), lengths)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """See `Backbone.reset_classifier`; an attention pooling that was dropped begins anew."""
        super().reset_classifier(num_classes, global_pool)
        self._fit_pool()

    def no_weight_decay(self) -> set[str]:
        """The pooling's query too; see `Backbone.no_weight_decay`."""
        return super().no_weight_decay() | ({"attn_pool.latent"} if self.attn_pool is not None else set())


_CFG = imagenet(crop_pct=1.0, paper_ids="arXiv:2307.06304")
default_cfgs = generate_default_cfgs({f"navit_{size}_patch16.untrained": _CFG for size in ("tiny", "small", "base")})


def _navit(name: str, width: int, pretrained: bool, kwargs: dict[str, Any]) -> NaViT:
    return build(NaViT, name, pretrained, **{"embed_dim": width, **kwargs})


@register_model
def navit_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> NaViT:
    """ViT-Ti's width and depth."""
    return _navit("navit_tiny_patch16", 192, pretrained, kwargs)


@register_model
def navit_small_patch16(pretrained: bool = False, **kwargs: Any) -> NaViT:
    """ViT-S's width and depth."""
    return _navit("navit_small_patch16", 384, pretrained, kwargs)


@register_model
def navit_base_patch16(pretrained: bool = False, **kwargs: Any) -> NaViT:
    """ViT-B's width and depth."""
    return _navit("navit_base_patch16", 768, pretrained, kwargs)
