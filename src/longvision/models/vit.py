"""A vision transformer (arXiv 2010.11929) that takes packed images (NaViT, arXiv 2307.06304): Vim's peer."""

from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import nn

from longvision.errors import UserError
from longvision.layers.attention import LayerNorm, TransformerBlock
from longvision.models.base import build
from longvision.models.published import imagenet
from longvision.models.sequence import Layout, SequenceBackbone, check_at_least_one


class ViT(SequenceBackbone):
    """(B, C, H, W) or PackedImages -> (B, num_classes). Of packed images each attends to itself alone.

    Args:
        embed_dim: model width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: the MLP's inner width, in model widths.
        **others: see `SequenceBackbone`.

    Raises:
        UserError: an unknown word, a number out of range, or heads that do not divide the width.
    """

    takes_packed = True
    bias, qk_norm = True, False  # of the blocks

    def __init__(
        self, *, embed_dim: int = 192, depth: int = 12, num_heads: int = 3, mlp_ratio: float = 4.0, **others: Any
    ) -> None:
        check_at_least_one(num_heads=num_heads)
        if embed_dim % num_heads:
            raise UserError(f"num_heads {num_heads} does not divide embed_dim {embed_dim}")

        def block(i: int, drop_path: float) -> TransformerBlock:
            return TransformerBlock(embed_dim, num_heads, mlp_ratio, drop_path, self.bias, self.qk_norm)

        norm = partial(LayerNorm, bias=self.bias)
        super().__init__(block, norm, embed_dim=embed_dim, depth=depth, **others)

    def _init_weights(self) -> None:
        """As timm's vision transformer."""
        super()._init_weights()
        init_linear_layers(self._blocks())

    def _block_arguments(self, layout: Layout) -> tuple[Any, ...]:
        packing = layout.packing
        return () if packing is None else (packing.cu_seqlens, packing.lengths)


@torch.no_grad()
def init_linear_layers(blocks: nn.Module) -> None:
    """As timm's vision transformer."""
    for module in blocks.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "vit_nano_patch4_32.untrained": imagenet(
            input_size=(3, 32, 32), num_classes=10, crop_pct=1.0, paper_ids=("arXiv:2010.11929", "arXiv:2307.06304")
        )
    }
)


@register_model
def vit_nano_patch4_32(pretrained: bool = False, **kwargs: Any) -> ViT:
    """For images of a few dozen pixels: as many blocks, as wide and as large as `vim_nano_patch4_32`."""
    nano = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4, "mlp_ratio": 2}
    return build(ViT, "vit_nano_patch4_32", pretrained, **{**nano, **kwargs})
