"""All blocks of a model in one call."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from longvision.layers.block import VimBlock
from longvision.layers.plain import is_plain
from longvision.ops import BoundBlock, run_stack
from longvision.ops.common import is_unseen


def run_at_once(blocks: Iterable[nn.Module], x_BMD: Tensor, *arguments: Any) -> Tensor | None:
    """(B, M, D) -> (B, M, D), through one block after the other in one call of the kernels.

    None where the blocks are to be called: with gradients, where one is not a plain block of Vim, or where somebody is
    to see what is between them. In a small image Python between the blocks, each time forgotten by the processor's
    caches, takes a fifth of the time.
    """
    if not is_unseen() or torch.is_grad_enabled() or isinstance(x_BMD, torch.fx.Proxy):
        return None
    bound = _bound(blocks)
    return run_stack(bound, x_BMD, *arguments) if bound else None


def _bound(blocks: Iterable[nn.Module]) -> list[BoundBlock] | None:
    """All of them as ops; None if one is to be called."""
    found = []
    for block in blocks:
        bound = block.bound() if isinstance(block, VimBlock) and is_plain(block, VimBlock) else None
        if bound is None:
            return None
        found.append(bound)
    return found
