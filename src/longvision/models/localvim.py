"""LocalVim (arXiv 2403.09338): Vim with scans in windows, the directions of each layer searched."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_module
from torch import Tensor, nn

from longvision.errors import UserError
from longvision.layers import RMSNorm
from longvision.layers.ordered_mixer import ChannelGate, OrderedMixer, Scan
from longvision.layers.orders import Orders
from longvision.layers.rope import Rotary, rotated
from longvision.layers.scan_init import scale_branches
from longvision.models.base import build
from longvision.models.ordered import OrderedBackbone
from longvision.models.published import imagenet
from longvision.models.sequence import check_at_least_one

# What the search found for the tiny model, layer by layer; in a line the place tells which parameters are whose.
SEARCHED = (
    "h vf w7 w7f", "hf w2f w7 w7f", "h hf v w7", "h hf v vf", "h hf v vf", "h hf v vf",
    "hf v vf w7", "hf v vf w2f", "h hf v vf", "h hf v vf", "h v vf w2", "h v vf w2f",
    "h hf vf w7", "hf v vf w2", "h hf v vf", "h v w2 w2f", "v vf w2 w7", "h hf v w2",
    "h hf w2f w7", "v vf w2 w2f",
)  # fmt: skip
LOCAL = "h hf w2 w2f"


class LocalVimBlock(nn.Module):
    """(B, M, D) -> (B, M, D). x + mixer(norm(x)), x turned by rotary positions before, if there are some.

    Args:
        dim: model width D.
        directions: "h" row by row, "v" column by column, "w7" in windows of 7x7 patches; with an f behind it backward.
        state: states a channel of the scans.
        drop_path: probability that an image skips the mixer in training (stochastic depth).
    """

    def __init__(self, dim: int, directions: Sequence[str], state: int = 16, drop_path: float = 0.0) -> None:
        super().__init__()
        scans = [Scan(word, word.endswith("f"), f"_{i}", f"A_log_{i}") for i, word in enumerate(directions)]
        self.norm = RMSNorm(dim)
        self.mixer = OrderedMixer(dim, 2 * dim, scans, state, ChannelGate)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BMD: Tensor, orders: Orders, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D), in x's dtype: hand in float32 to keep the residual in float32."""
        if rotation is not None:
            cos_MD, sin_MD = rotation  # torch.fx unpacks a pair so alone
            x_BMD = rotated(x_BMD, cos_MD, sin_MD)
        return x_BMD + self.drop_path(self.mixer(self.norm(x_BMD), orders)).to(x_BMD.dtype)


register_notrace_module(LocalVimBlock)


class LocalVim(OrderedBackbone):
    """(B, C, H, W) -> (B, num_classes), for any H x W that divides into patches.

    Args:
        embed_dim: model width D.
        depth: number of blocks.
        directions: of each block, as for `LocalVimBlock` in one string; one string for all. Blocks beyond the last take
            the first one's again.
        state: states a channel of the scans.
        cls_token: "middle", or "none".
        rope: turn all tokens by rotary positions before each block; needs cls_token="none".
        **others: see `SequenceBackbone`.

    Raises:
        UserError: an unknown word, a number out of range, or rotary positions with a class token.
    """

    blocks_name, norm_name = "layers", "norm_f"

    def __init__(
        self,
        *,
        embed_dim: int = 192,
        depth: int = 20,
        directions: str | Sequence[str] = LOCAL,
        state: int = 16,
        cls_token: str = "middle",
        rope: bool = False,
        **others: Any,
    ) -> None:
        check_at_least_one(state=state, embed_dim=embed_dim)
        layers = _layers(directions)
        for word in {word for layer in layers for word in layer or [""]}:
            if not re.fullmatch(r"(h|v|w[1-9]\d*)f?", word):
                raise UserError(f"direction {word!r} is unknown: choose h, v, or w7 for windows of 7, with an f or not")
        if rope and (cls_token != "none" or embed_dim % 4):
            raise UserError(
                f"rope turns patches alone, by a quarter of the channels each way: it needs cls_token='none', not "
                f"{cls_token!r}, and an embed_dim that 4 divides, not {embed_dim}"
            )

        def block(i: int, drop_path: float) -> LocalVimBlock:
            return LocalVimBlock(embed_dim, layers[i % len(layers)], state, drop_path)

        shape: dict[str, Any] = {"embed_dim": embed_dim, "depth": depth, "cls_token": cls_token}
        orders = {word for layer in layers for word in layer}
        super().__init__(block, RMSNorm, orders=orders, **shape, **others)
        self.rope = Rotary(self.grid, embed_dim) if rope else None

    @torch.no_grad()
    def _init_weights(self) -> None:
        """As published: every Linear from N(0, 0.02) without bias, those of the steps too, convolutions as torch's."""
        super()._init_weights()
        self.patch_embed.proj.reset_parameters()
        for name in self._token_names():
            getattr(self, name).zero_()
        for name, module in self._blocks().named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("out_proj"):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    module.bias.zero_()
        scale_branches(self._blocks())

    def _others(self, grid: tuple[int, int], x_BMD: Tensor) -> tuple[Any, ...]:
        return () if self.rope is None else (self.rope(grid, x_BMD),)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """As `SequenceBackbone.set_input_size`; rotary positions too are those of that size in a file of weights."""
        super().set_input_size(img_size)
        if self.rope is not None:
            self.rope = Rotary(self.grid, self.embed_dim).to(self.pos_embed.device, self.pos_embed.dtype)


def _layers(directions: Any) -> list[list[str]]:
    """The words of each line. Raises UserError for what is no line, and no list of lines."""
    lines = [directions] if isinstance(directions, str) else directions
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise UserError(
            f"directions {directions!r}: expected four words in one string, such as 'h hf v vf', for all blocks, or a "
            "list of such strings, one a block"
        )
    return [line.split() for line in lines] or [[]]


RELEASE = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0"


def _cfg(filename: str = "", accuracy: float | None = None) -> dict[str, Any]:
    return imagenet(
        accuracy,
        url=f"{RELEASE}/{filename}" if filename else None,
        custom_load=bool(filename),
        license="apache-2.0" if filename else None,
        origin_url="https://github.com/hunto/LocalMamba",
        paper_ids="arXiv:2403.09338",
    )


default_cfgs = generate_default_cfgs(
    {
        "localvim_tiny_patch16_224.middle_cls_in1k": _cfg("local_vim_tiny_middle_cls_token.ckpt", 77.8),
        "localvim_tiny_patch16_224.rope_in1k": _cfg("local_vim_tiny.ckpt", 76.2),
        "localvim_small_patch16_224.untrained": _cfg(),
    }
)
ROPE = {"cls_token": "none", "rope": True}


@register_model
def localvim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T: 20 blocks of width 192, 8.0 million parameters, a class token in the middle; with the tag
    `.rope_in1k`, or rope=True, the one with rotary positions and the mean of the patches."""
    name, rope = "localvim_tiny_patch16_224", "rope_in1k"
    tag = kwargs.get("pretrained_cfg") or (rope if kwargs.get("rope") else "middle_cls_in1k")
    own = ROPE if getattr(tag, "tag", tag) == rope else {}
    return build(LocalVim, name, pretrained, **{"directions": SEARCHED, **own, **kwargs, "pretrained_cfg": tag})


@register_model
def localvim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S as the authors' code makes it: 20 blocks of width 384 with the same four directions, rotary positions,
    27.8 million parameters. No weights of it are known."""
    return build(LocalVim, "localvim_small_patch16_224", pretrained, **{"embed_dim": 384, **ROPE, **kwargs})
