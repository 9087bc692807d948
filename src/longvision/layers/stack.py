"""Blocks one after the other."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from longvision.layers.block import VimBlock
from longvision.layers.plain import is_plain
from longvision.ops import BoundBlock, run_stack
from longvision.ops.common import is_unseen


def run_blocks(blocks: Iterable[nn.Module], x_BMD: Tensor, *arguments: Tensor) -> Tensor:
    """(B, M, D) -> (B, M, D), through one block after the other, each called with the arguments too.

    Blocks of Vim without gradients are one call of the kernels, if nobody is to see what is between them: in a small
    image Python between the blocks, each time forgotten by the processor's caches, takes a fifth of the time.
    """
    blocks = list(blocks)
    if is_unseen() and not torch.is_grad_enabled() and not isinstance(x_BMD, torch.fx.Proxy):
        bound = _bound(blocks)
        out_BMD = run_stack(bound, x_BMD, *arguments) if bound else None
        if out_BMD is not None:
            return out_BMD
    for block in blocks:
        x_BMD = block(x_BMD, *arguments)
    return x_BMD


def _bound(blocks: list[nn.Module]) -> list[BoundBlock] | None:
    """All of them as ops; None if one is to be called."""
    found = []
    for block in blocks:
        bound = block.bound() if isinstance(block, VimBlock) and is_plain(block, VimBlock) else None
        if bound is None:
            return None
        found.append(bound)
    return found
