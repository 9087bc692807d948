"""Mamba-Reg (arXiv 2405.14858): Vim's blocks with registers among the patches, which keep what is global out of the
maps and are the features of the image."""

from typing import Any, ClassVar

import torch
from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers import Registers, RMSNorm
from longvision.models.base import build
from longvision.models.published import imagenet
from longvision.models.sequence import Layout, check_at_least_one
from longvision.models.vim import Vim
from longvision.ops.common import widened


class MambaReg(Vim):
    """(B, C, H, W) or PackedImages -> (B, num_classes), for any H x W that divides into patches.

    Args:
        embed_dim: model width D.
        registers: how many, n; they stand evenly among the patches.
        cls_reduce: what the registers' width is divided by before they are concatenated for the head; 1 for nothing.
        **others: see `Vim` and `SequenceBackbone`; `pool` "token" is the concatenation of all registers.

    Raises:
        UserError: an unknown word, a number out of range, or a width that `cls_reduce` does not divide.
    """

    pool_names = "neck", "norm_neck"
    pyramid_options: ClassVar[dict[str, Any]] = {}  # registers keep what is global out of the maps

    def __init__(self, *, embed_dim: int = 192, registers: int = 12, cls_reduce: int = 1, **others: Any) -> None:
        check_at_least_one(embed_dim=embed_dim, registers=registers, cls_reduce=cls_reduce)
        if embed_dim % cls_reduce:
            raise UserError(f"cls_reduce {cls_reduce} does not divide embed_dim {embed_dim}")
        self.cls_reduce = cls_reduce
        super().__init__(embed_dim=embed_dim, cls_token=Registers(registers), **others)
        self.pos_embed_cls = nn.Parameter(trunc_normal_(torch.empty(1, registers, embed_dim), std=0.02))

    @torch.no_grad()
    def _init_weights(self) -> None:
        """As published: Vim's, but that steps of the backward direction begin at softplus(0)."""
        super()._init_weights()
        for block in self._blocks():
            if (backward := getattr(block.mixer, "dt_proj_b", None)) is not None:
                backward.bias.zero_()

    # Images to tokens

    def _token_names(self) -> list[str]:
        return ["cls_token"]

    def _class_tokens(self, batch: int) -> Tensor:
        """(B, n, D), with their positions."""
        return (widened(self.cls_token) + widened(self.pos_embed_cls)).expand(batch, -1, -1)  # type: ignore[arg-type]

    def _placed(self, class_1TD: Tensor) -> Tensor:
        return class_1TD

    def _positions(self, grid: tuple[int, int], like_BMD: Tensor) -> Tensor:
        """(1, M + n, D), zeros for registers."""
        positions_1MD = super()._positions(grid, like_BMD)
        if self.positions != "absolute":
            return positions_1MD
        return self.tokens.insert(positions_1MD, torch.zeros_like(self.pos_embed_cls))

    # Tokens to features

    def _pooled(self, x: Tensor, layout: Layout | None) -> Tensor:
        """All registers in their order, each made narrower if there is a neck."""
        if self.pool != "token":
            return super()._pooled(x, layout)
        registers_BnD = self._class_states(x, layout.packing if layout is not None else None)
        if self.neck is None or self.norm_neck is None:
            return registers_BnD.flatten(1)
        return self.norm_neck(self.neck(registers_BnD).flatten(1))

    def _new_head(self) -> nn.Module:
        self._fit_neck()
        return super()._new_head()

    def _fit_neck(self) -> None:
        """A neck where it is used, and none elsewhere: its parameters would get no gradient."""
        narrow = self.embed_dim // self.cls_reduce
        together = narrow * self.tokens.count
        self.head_hidden_size = together if self.pool == "token" else self.embed_dim
        if self.pool != "token" or self.cls_reduce == 1:
            self.neck, self.norm_neck = None, None
        elif getattr(self, "neck", None) is None:
            like = self.patch_embed.proj.weight
            self.neck = nn.Linear(self.embed_dim, narrow, bias=False, device=like.device, dtype=like.dtype)
            self.norm_neck = RMSNorm(together).to(like.device, like.dtype)
            trunc_normal_(self.neck.weight, std=0.02)


def _cfg(size: str = "", accuracy: float | None = None) -> dict[str, Any]:
    return imagenet(
        accuracy,
        hf_hub_id="Wangf3014/Mamba-Reg" if size else None,
        hf_hub_filename=f"mambar_{size}_patch16_224.pth" if size else None,
        crop_pct=1.0,
        license=None,  # the authors state none
        origin_url="https://github.com/wangf3014/Mamba-Reg",
        paper_ids="arXiv:2405.14858",
    )


default_cfgs = generate_default_cfgs(
    {
        "mambareg_tiny_patch16_224.untrained": _cfg(),
        "mambareg_small_patch16_224.in1k": _cfg("small", 81.4),
        "mambareg_base_patch16_224.in1k": _cfg("base", 83.0),
        "mambareg_large_patch16_224.in1k": _cfg("large", 83.6),
    }
)


@register_model
def mambareg_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-Ti: 24 blocks of width 192, 12 registers, 9.3 million parameters."""
    return build(MambaReg, "mambareg_tiny_patch16_224", pretrained, **{"embed_dim": 192, **kwargs})


@register_model
def mambareg_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-S: 24 blocks of width 384, 12 registers, 27.8 million parameters."""
    small = {"embed_dim": 384, "cls_reduce": 2}
    return build(MambaReg, "mambareg_small_patch16_224", pretrained, **{**small, **kwargs})


@register_model
def mambareg_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-B: 24 blocks of width 768, 12 registers, 99.3 million parameters."""
    base = {"embed_dim": 768, "cls_reduce": 4}
    return build(MambaReg, "mambareg_base_patch16_224", pretrained, **{**base, **kwargs})


@register_model
def mambareg_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-L: 48 blocks of width 1024, 16 registers, 341 million parameters."""
    large = {"embed_dim": 1024, "depth": 48, "registers": 16, "cls_reduce": 8}
    return build(MambaReg, "mambareg_large_patch16_224", pretrained, **{**large, **kwargs})
