"""Attention maps of EfficientViT's cascaded group attention, whose heads follow one another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from timm.models.efficientvit_msra import CascadedGroupAttention
from torch import Tensor, nn


def cascaded_layers(model: nn.Module) -> dict[str, Any]:
    """The modules, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CascadedGroupAttention)}


@contextmanager
def watched_cascades(model: nn.Module, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """As `attention.watched_attention`, with a map for each window: (windows of all images, H, M, M)."""
    layers = enumerate(cascaded_layers(model).values())
    hooks = [hook for number, layer in layers for hook in _hooks(layer, partial(take, number))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(layer: Any, take: Callable[[Tensor], None]) -> list[Any]:
    """A head's keys come before its queries, which a convolution follows; with the last head's all maps are there."""
    keys: list[Tensor] = []
    maps: list[Tensor] = []

    def take_keys(_: nn.Module, __: Any, found: Tensor, count: int) -> None:
        keys[:] = [found[:, count : 2 * count].flatten(2)]

    def take_queries(_: nn.Module, __: Any, found: Tensor, head: int) -> None:
        bias_MM = layer.get_attention_biases(found.device)[head]
        maps.append((found.flatten(2).transpose(1, 2) * layer.scale @ keys[0] + bias_MM).softmax(-1))
        if head == layer.num_heads - 1:
            take(torch.stack(maps, 1))
            maps.clear()

    hooks = []
    for head, (qkv, queries) in enumerate(zip(layer.qkvs, layer.dws)):
        hooks.append(qkv.register_forward_hook(partial(take_keys, count=queries.conv.out_channels)))
        hooks.append(queries.register_forward_hook(partial(take_queries, head=head)))
    return hooks
