"""ARM (arXiv 2406.07537): a Mamba for images that was pre-trained by autoregression, with four scans and an MLP in each
block; RoMA (arXiv 2503.10392) has the same network in two more sizes."""

from typing import Any

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn

from longvision.layers.attention import LayerNorm
from longvision.layers.ordered_mixer import OrderedMixer, Scan
from longvision.layers.orders import Orders
from longvision.layers.scan_init import scale_branches
from longvision.layers.swiglu import SwiGLU
from longvision.models.base import build
from longvision.models.ordered import OrderedBackbone
from longvision.models.published import imagenet
from longvision.models.sequence import Layout, check_at_least_one

# Row by row and column by column, each from both ends.
SCANS = (
    Scan("h", False, "", "A_log"),
    Scan("h", True, "_b", "A_b_log"),
    Scan("v", False, "_c", "A_c_log"),
    Scan("v", True, "_c_b", "A_c_b_log"),
)


class ARMBlock(nn.Module):
    """(B, M, D) -> (B, M, D). x + mixer(norm(x)), then x + mlp(norm(x)).

    Args:
        dim: model width D, the mixer's inner width too.
        state: states a channel of the scans.
        drop_path: probability that an image skips the mixer, or the MLP, in training (stochastic depth).
    """

    def __init__(self, dim: int, state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim, eps=1e-5), LayerNorm(dim, eps=1e-5)
        self.mixer = OrderedMixer(dim, dim, SCANS, state)
        self.mlp = SwiGLU(dim, 8 * dim // 3)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BMD: Tensor, orders: Orders) -> Tensor:
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32."""
        x_BMD = x_BMD + self.drop_path(self.mixer(self.norm1(x_BMD), orders)).to(x_BMD.dtype)
        return x_BMD + self.drop_path(self.mlp(self.norm2(x_BMD))).to(x_BMD.dtype)


register_notrace_module(ARMBlock)


class ARM(OrderedBackbone):
    """(B, C, H, W) -> (B, num_classes).

    Args:
        embed_dim: model width D.
        depth: number of blocks.
        state: states a channel of the scans.
        cls_token: "middle", or "none".
        **others: see `SequenceBackbone`; `pool` "mean", which is its own, is that of the means of what stands before
            the class token and behind it.

    Raises:
        UserError: an unknown word, or a number out of range.
    """

    blocks_name, norm_name = "layers", "norm_f"
    own_pools = ("mean",)

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        state: int = 16,
        cls_token: str = "middle",
        **others: Any,
    ) -> None:
        check_at_least_one(state=state)

        def block(i: int, drop_path: float) -> ARMBlock:
            return ARMBlock(embed_dim, state, drop_path)

        shape: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "cls_token": cls_token}
        orders = {scan.order for scan in SCANS}
        super().__init__(block, lambda dim: LayerNorm(dim, eps=1e-5), orders=orders, **shape, **others)

    @torch.no_grad()
    def _init_weights(self) -> None:
        """As published: Vim's, but that the steps of all branches but the first begin at softplus(0)."""
        super()._init_weights()
        scale_branches(self._blocks())
        for block in self._blocks():
            for scan in SCANS[1:]:
                block.mixer.get_submodule(f"dt_proj{scan.suffix}").bias.zero_()  # type: ignore[union-attr, operator]
            for linear in block.mlp.children():  # type: ignore[union-attr]
                linear.bias.zero_()  # type: ignore[operator]

    def _rates(self, last: float, depth: int) -> list[float]:
        """As published, a block later: the first two are never skipped."""
        return [0.0, *super()._rates(last, depth)][:depth]

    def _left_out(self, patches: int) -> int:
        """As trained: with an odd number of patches, which 224 pixels do not have, the patch behind the class token."""
        return (patches + 1) // 2

    def _pooled(self, x: Tensor, layout: Layout | None) -> Tensor:
        if self.pool == "mean" and self.tokens.count:
            return mean_of_halves(x)
        return super()._pooled(x, layout)


@torch.fx.wrap
def mean_of_halves(x_BMD: Tensor) -> Tensor:
    """(B, M + 1, D) -> (B, D), without the token in the middle."""
    middle = (x_BMD.shape[1] - 1) // 2
    if middle == 0:  # of one patch there are no halves
        return x_BMD[:, 1]
    return (x_BMD[:, :middle].mean(1) + x_BMD[:, middle + 1 :].mean(1)) / 2


def _cfg(accuracy: float | None = None, **others: Any) -> dict[str, Any]:
    own = {
        "crop_mode": "squash",  # to 256x256, whatever the image's proportions
        "license": None,  # the authors state none
        "origin_url": "https://github.com/OliverRensu/ARM",
        "paper_ids": "arXiv:2406.07537",
    }
    return imagenet(accuracy, **{**own, **others})


# The authors' files (huggingface.co/OliverRen/ARM and initiacms/RoMA) are given by path: nobody lists their names.
_ROMA: dict[str, Any] = {"origin_url": "https://github.com/MiliLab/RoMA", "paper_ids": "arXiv:2503.10392"}
default_cfgs = generate_default_cfgs(
    {
        "arm_tiny_patch16_224.untrained": _cfg(**_ROMA),
        "arm_small_patch16_224.untrained": _cfg(**_ROMA),
        "arm_base_patch16_224.untrained": _cfg(83.2),
        "arm_large_patch16_224.untrained": _cfg(84.5),
        "arm_huge_patch16_224.untrained": _cfg(85.0),
    }
)


def _arm(name: str, width: int, depth: int, pretrained: bool, kwargs: dict[str, Any]) -> ARM:
    return build(ARM, name, pretrained, **{"embed_dim": width, "depth": depth, **kwargs})


@register_model
def arm_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """RoMA's smallest: 12 blocks of width 384, 22.2 million parameters."""
    return _arm("arm_tiny_patch16_224", 384, 12, pretrained, kwargs)


@register_model
def arm_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """RoMA's: 12 blocks of width 512, 38.6 million parameters."""
    return _arm("arm_small_patch16_224", 512, 12, pretrained, kwargs)


@register_model
def arm_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-B: 12 blocks of width 768, 85.0 million parameters."""
    return _arm("arm_base_patch16_224", 768, 12, pretrained, kwargs)


@register_model
def arm_large_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-L: 24 blocks of width 1024, 297 million parameters."""
    return _arm("arm_large_patch16_224", 1024, 24, pretrained, kwargs)


@register_model
def arm_huge_patch16_224(pretrained: bool = False, **kwargs: Any) -> ARM:
    """ARM-H: 24 blocks of width 1536, 663 million parameters."""
    return _arm("arm_huge_patch16_224", 1536, 24, pretrained, kwargs)
