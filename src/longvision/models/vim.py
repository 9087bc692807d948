"""Vision Mamba (Vim, arXiv 2401.09417): a class token in the middle, bidirectional selective scans."""

from dataclasses import replace
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor

from longvision.layers import ClassToken, ClassTokens, Direction, RMSNorm, VimBlock
from longvision.layers.scan_init import scale_branches
from longvision.models.base import build
from longvision.models.published import imagenet
from longvision.models.sequence import Layout, SequenceBackbone, check_at_least_one
from longvision.types import PackedImages

# timm's feature extraction by torch.fx takes blocks whole, as they run; torch.fx alone looks into them.
register_notrace_module(VimBlock)
register_notrace_module(RMSNorm)


class Vim(SequenceBackbone):
    """Vision Mamba. (B, C, H, W) or PackedImages -> (B, num_classes).

    Args:
        embed_dim: model width D.
        depth: number of blocks.
        state: states a channel of the scan.
        direction: how the tokens are scanned (table 4 of the paper). "ssm_conv": each block in both directions, each
            with its own convolution and SSM. "ssm": both, sharing the convolution. "layer": every second block scans
            backward. "sequence": in training a random half of the images is scanned backward. "none": forward.
        cls_token: where the class token stands: "middle", "head", "double" (both ends) or "none".
        **others: see `SequenceBackbone`.

    Raises:
        UserError: an unknown word, a number out of range, or "token" pooling without a class token.
    """

    blocks_name, norm_name = "layers", "norm_f"  # of the released checkpoints
    takes_packed = True

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        depth: int = 24,
        state: int = 16,
        direction: Direction = "ssm_conv",
        cls_token: ClassToken | ClassTokens = "middle",
        **others: Any,
    ) -> None:
        check_at_least_one(state=state)

        def block(i: int, drop_path: float) -> VimBlock:
            reverse = direction == "layer" and i % 2 == 1
            return VimBlock(embed_dim, state=state, direction=direction, reverse=reverse, drop_path=drop_path)

        super().__init__(block, RMSNorm, embed_dim=embed_dim, depth=depth, cls_token=cls_token, **others)
        self.direction = direction

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The published initialisation; the mixers have set their own."""
        super()._init_weights()
        scale_branches(self._blocks())

    def embed(self, images: Tensor | PackedImages) -> tuple[Tensor, Layout]:
        """As `SequenceBackbone.embed`; with direction "sequence", in training, a random half of the images flipped."""
        x_BMD, layout = super().embed(images)
        if self.direction != "sequence" or not self.training:
            return x_BMD, layout
        count = x_BMD.shape[0] if layout.packing is None else len(layout.packing.lengths)
        layout = replace(layout, flipped_B=torch.rand(count, device=x_BMD.device) < 0.5)
        return self._in_order(x_BMD, layout), layout

    def _in_order(self, x: Tensor, layout: Layout) -> Tensor:
        """Flips what `embed` flipped."""
        if layout.flipped_B is None:
            return x
        if layout.packing is None:
            return torch.where(layout.flipped_B[:, None, None], x.flip(1), x)
        parts = x.split(list(layout.packing.lengths), dim=1)
        return torch.cat([torch.where(flip, part.flip(1), part) for part, flip in zip(parts, layout.flipped_B)], 1)


def _cfg(repository: str = "", filename: str = "", accuracy: float | None = None, **kwargs: Any) -> dict[str, Any]:
    own = {
        "hf_hub_id": f"hustvl/{repository}" if repository else None,
        "hf_hub_filename": filename or None,
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_ids": "arXiv:2401.09417",
    }
    return imagenet(accuracy, **{**own, **kwargs})


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", 76.1),
        "vim_small_patch16_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", 80.5),
        "vim_base_patch16_224.in1k": _cfg("Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", 81.9),
        "vim_tiny_patch16_stride8_224.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", 78.3),
        "vim_small_patch16_stride8_224.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", 81.6),
        "vim_nano_patch4_32.untrained": _cfg(input_size=(3, 32, 32), num_classes=10, crop_pct=1.0, license=None),
    }
)


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti: 24 blocks of width 192, 7.1 million parameters."""
    return build(Vim, "vim_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S: 24 blocks of width 384, 25.8 million parameters."""
    return build(Vim, "vim_small_patch16_224", pretrained, **{"embed_dim": 384, **kwargs})


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B: 24 blocks of width 768, 97.6 million parameters."""
    return build(Vim, "vim_base_patch16_224", pretrained, **{"embed_dim": 768, **kwargs})


@register_model
def vim_tiny_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti with overlapping patches: four times the tokens."""
    return build(Vim, "vim_tiny_patch16_stride8_224", pretrained, **{"embed_dim": 192, "stride": 8, **kwargs})


@register_model
def vim_small_patch16_stride8_224(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S with overlapping patches: four times the tokens."""
    return build(Vim, "vim_small_patch16_stride8_224", pretrained, **{"embed_dim": 384, "stride": 8, **kwargs})


@register_model
def vim_nano_patch4_32(pretrained: bool = False, **kwargs: Any) -> Vim:
    """For images of a few dozen pixels: 4 blocks of width 128, half a million parameters."""
    nano = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4}
    return build(Vim, "vim_nano_patch4_32", pretrained, **{**nano, **kwargs})
