"""What a forward keeps for a backward: whether one may come, and what is said where nothing was kept."""

from collections.abc import Iterable

import torch
from torch import Tensor


def may_need_backward(tensors: Iterable[Tensor]) -> bool:
    """Whether what a backward needs is to be kept."""
    if not torch.is_grad_enabled():
        return False
    # Inside vmap a tensor does not say whether the one that it stands for needs a gradient.
    hidden = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return hidden or any(tensor.requires_grad for tensor in tensors)


def check_kept(op: str, states: Tensor) -> None:
    """Raises RuntimeError in a backward for which nothing was kept."""
    if states.ndim == 1:
        raise RuntimeError(
            f"{op} kept nothing for a backward, since it was exported or traced under no_grad: do that with gradients"
        )
