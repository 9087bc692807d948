"""No forward-mode derivatives: said, where torch would silently take them for zero."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError inside `torch.func.jvp` and the like, if one of the tensors has a tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(tensor is not None and _has_tangent(tensor) for tensor in tensors):
        raise NotImplementedError(
            f"{op} got a tangent, and its kernels have no forward-mode derivative: use reverse mode, as in backward()"
        )


def _has_tangent(tensor: Tensor) -> bool:
    while torch._C._functorch.is_batchedtensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return forward_ad.unpack_dual(tensor).tangent is not None
