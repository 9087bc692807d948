"""EfficientViT (MSRA, arXiv 2305.07027) with fewer channels: timm's model, in which each head has as many queries and
keys, and as many values, as are left to it, and each MLP its own hidden width. What comes in and goes out stays.

`efficientvit_m0_pruned` … `_m5_pruned` are timm names; `widths` says what is left, and is kept beside the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientvit_msra import (
    CascadedGroupAttention,
    ConvMlp,
    ConvNorm,
    EfficientVitMsra,
    checkpoint_filter_fn,
)
from torch import Tensor, nn

from longvision.errors import UserError

SUFFIX = "_pruned"
Widths = dict[str, list[int]]  # an MLP -> [hidden]; a head, ATTENTION.qkvs.NUMBER -> [queries and keys, values]
Kept = dict[str, list[Tensor]]  # by the same names, which channels these are
Weights = dict[str, Tensor]
NORM = ("weight", "bias", "running_mean", "running_var")


class PrunedEfficientVit(EfficientVitMsra):
    """(B, C, H, W) -> (B, num_classes).

    Args:
        widths: channels that are left, of the layers where some are gone.
        others: timm's.

    Raises:
        UserError: a layer that is not there, or a width that it cannot have.
    """

    def __init__(self, *, widths: Widths | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.widths = widths or {}
        check_widths(self.widths, full_widths(self))
        for name, layer in list(self.named_modules()):
            if isinstance(layer, ConvMlp) and name in self.widths:
                self.set_submodule(name, _narrow_mlp(layer, *self.widths[name]))
            elif isinstance(layer, CascadedGroupAttention):
                full = [[layer.key_dim, layer.val_dim]] * layer.num_heads
                left = [self.widths.get(f"{name}.qkvs.{head}", full[head]) for head in range(layer.num_heads)]
                if left != full:
                    self.set_submodule(name, PrunedAttention(layer, *zip(*left)))


class PrunedAttention(CascadedGroupAttention):
    """Cascaded group attention whose heads have channels of their own number.

    A head adds its values to the channels that the next one gets, those that are left to where they were: `kept_N`.

    Args:
        like: the whole one.
        keys: of each head, queries and as many keys.
        values: of each head.
    """

    def __init__(self, like: Any, keys: Sequence[int], values: Sequence[int]) -> None:
        heads, dd = like.num_heads, get_device_dtype(like)
        kernels = tuple(dw.conv.kernel_size[0] for dw in like.dws)
        super().__init__(heads * like.val_dim, like.key_dim, heads, like.attn_ratio, like.resolution, kernels, **dd)
        self.keys, self.values = tuple(keys), tuple(values)
        each = list(zip(keys, values, kernels))
        self.qkvs = nn.ModuleList(ConvNorm(like.val_dim, 2 * key + value, **dd) for key, value, _ in each)
        self.dws = nn.ModuleList(ConvNorm(key, key, side, 1, side // 2, groups=key, **dd) for key, _, side in each)
        self.proj[1] = ConvNorm(sum(values), heads * like.val_dim, bn_weight_init=0, **dd)
        for head, value in enumerate(values[:-1]):
            self.register_buffer(f"kept_{head}", torch.arange(value, device=dd["device"]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), as timm's."""
        B, _, H, W = x.shape
        bias = self.get_attention_biases(x.device)
        found: list[Tensor] = []
        for head, (part, key, value) in enumerate(zip(x.chunk(self.num_heads, 1), self.keys, self.values)):
            if head:
                part = part.index_add(1, getattr(self, f"kept_{head - 1}"), found[-1].to(part.dtype))
            q, k, v = self.qkvs[head](part).split([key, key, value], 1)
            q, k, v = self.dws[head](q).flatten(2) * self.scale, k.flatten(2), v.flatten(2)
            attention = (q.transpose(-2, -1) @ k + bias[head]).softmax(-1)
            found.append((v @ attention.transpose(-2, -1)).view(B, value, H, W))
        return self.proj(torch.cat(found, 1))


def full_widths(model: nn.Module) -> Widths:
    """Of each layer of an EfficientViT that can be pruned, as it is now. Empty for any other model."""
    widths: Widths = {}
    layer: Any
    for name, layer in model.named_modules():
        if isinstance(layer, ConvMlp):
            widths[name] = [layer.pw1.conv.out_channels]
        elif isinstance(layer, CascadedGroupAttention):
            heads: Any = zip(layer.qkvs, layer.dws)
            for head, (qkv, dw) in enumerate(heads):
                key = dw.conv.out_channels
                widths[f"{name}.qkvs.{head}"] = [key, qkv.conv.out_channels - 2 * key]
    return widths


def check_widths(widths: Widths, full: Widths) -> None:
    """Raises UserError for a layer that is not there, or a width that it cannot have."""
    for name, left in widths.items():
        if name not in full:
            raise UserError(f"widths: there is no layer {name!r} that can be pruned")
        if len(left) != len(full[name]) or not all(1 <= one <= most for one, most in zip(left, full[name])):
            raise UserError(
                f"widths of {name} are {left}: expected from 1 to {full[name]}, as a layer, or a head, needs a channel"
            )


@torch.no_grad()
def sliced(model: nn.Module, kept: Kept) -> tuple[Weights, Widths]:
    """What a model with these channels of a trained one has: weights, whose outputs are those of the whole model with
    the others at zero, and widths.

    Args:
        model: an EfficientViT, whole or pruned.
        kept: numbers of the channels, ascending, of each layer of which some go.

    Raises:
        UserError: as `check_widths`.
    """
    full = full_widths(model)
    widths = {name: [len(one) for one in left] for name, left in kept.items()}
    check_widths(widths, full)
    kept = {name: left for name, left in kept.items() if widths[name] != full[name]}
    weights = dict(model.state_dict())
    for name, left in kept.items():
        if len(left) == 1:
            _slice_mlp(weights, name, left[0])
    for name, layer in model.named_modules():
        if isinstance(layer, CascadedGroupAttention):
            heads = [f"{name}.qkvs.{head}" for head in range(layer.num_heads)]
            if any(head in kept for head in heads):
                whole = {head: [torch.arange(count) for count in full[head]] for head in heads}
                _slice_attention(
                    weights, name, [{**whole, **kept}[head] for head in heads], [full[head] for head in heads]
                )
    return weights, {**getattr(model, "widths", {}), **{name: widths[name] for name in kept}}


def _slice_mlp(weights: Weights, name: str, left_C: Tensor) -> None:
    _rows(weights, f"{name}.pw1", left_C)
    weights[f"{name}.pw2.conv.weight"] = weights[f"{name}.pw2.conv.weight"][:, left_C]


def _slice_attention(weights: Weights, name: str, left: list[list[Tensor]], full: list[list[int]]) -> None:
    columns, before = [], 0
    for head, ((keys, values), (key, value)) in enumerate(zip(left, full)):
        _rows(weights, f"{name}.qkvs.{head}", torch.cat([keys, key + keys, 2 * key + values]))
        _rows(weights, f"{name}.dws.{head}", keys)
        columns.append(before + values)
        before += value
        if head < len(left) - 1:
            was = weights.get(f"{name}.kept_{head}", torch.arange(value))
            weights[f"{name}.kept_{head}"] = was[values.to(was.device)]
    proj = f"{name}.proj.1.conv.weight"
    weights[proj] = weights[proj][:, torch.cat(columns)]


def _rows(weights: Weights, name: str, left_C: Tensor) -> None:
    """Of a convolution and its norm, what makes these channels."""
    for own in ("conv.weight", *(f"bn.{part}" for part in NORM)):
        weights[f"{name}.{own}"] = weights[f"{name}.{own}"][left_C]


def _narrow_mlp(like: ConvMlp, hidden: int) -> ConvMlp:
    return ConvMlp(like.pw1.conv.in_channels, hidden, **get_device_dtype(like))


_VARIANTS: dict[
    str, tuple[list[int], list[int], list[int], list[int]]
] = {  # of the paper's Table 1: widths, depths, heads, and the kernels of the queries
    "efficientvit_m0_pruned": ([64, 128, 192], [1, 2, 3], [4, 4, 4], [5, 5, 5, 5]),
    "efficientvit_m1_pruned": ([128, 144, 192], [1, 2, 3], [2, 3, 3], [7, 5, 3, 3]),
    "efficientvit_m2_pruned": ([128, 192, 224], [1, 2, 3], [4, 3, 2], [7, 5, 3, 3]),
    "efficientvit_m3_pruned": ([128, 240, 320], [1, 2, 3], [4, 3, 4], [5, 5, 5, 5]),
    "efficientvit_m4_pruned": ([128, 256, 384], [1, 2, 3], [4, 4, 4], [7, 5, 3, 3]),
    "efficientvit_m5_pruned": ([192, 288, 384], [1, 3, 4], [3, 3, 4], [7, 5, 3, 3]),
}


def _entry(name: str) -> Callable[..., nn.Module]:
    embed_dim, depth, num_heads, kernels = _VARIANTS[name]
    shape = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "kernels": kernels}

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            PrunedEfficientVit,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"flatten_sequential": True, "out_indices": kwargs.pop("out_indices", (0, 1, 2))},
            **{**shape, **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name.removesuffix(SUFFIX)} with the channels that `widths` leaves."
    return create


_CFG = {
    key: getattr(timm.get_pretrained_cfg("efficientvit_m0"), key)
    for key in ("input_size", "pool_size", "crop_pct", "interpolation", "mean", "std", "first_conv", "classifier")
}
default_cfgs = generate_default_cfgs({f"{name}.untrained": dict(_CFG) for name in _VARIANTS})
for _name in _VARIANTS:
    register_model(_entry(_name))
