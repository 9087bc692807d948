"""Attention maps of timm's models, taken by hooks while they run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from longvision.layers.memory import own_tokens


def attention_layers(model: nn.Module) -> dict[str, Any]:
    """The modules that have an attention map as timm writes them, by their names: `attn_drop` is given the map."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    }


@contextmanager
def watched_attention(model: nn.Module, take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, whenever the model runs, `take` gets the number of each layer and its map (B, H, M, M), row i over what
    token i reads: what the values are multiplied with, so with Re-attention the mixed and normalised map. Memory tokens
    of a block are left out, as rows and as columns.

    Fused attention, which has no map, is off inside; the model is as it was afterwards.
    """
    layers, tokens = list(attention_layers(model).values()), own_tokens(model)
    fused = [layer.fused_attn for layer in layers]

    def taker(number: int, own: slice) -> Callable[..., None]:
        return lambda _, __, map_BHMM: take(number, map_BHMM[:, :, own, own])

    hooks = [
        layer.attn_drop.register_forward_hook(taker(number, tokens.get(layer, slice(None))))
        for number, layer in enumerate(layers)
    ]
    for layer in layers:
        layer.fused_attn = False
    try:
        yield
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was
        for hook in hooks:
            hook.remove()
