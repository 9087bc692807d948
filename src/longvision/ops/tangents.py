"""No forward-mode derivatives: said, where torch would silently take them for zero."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """Raises NotImplementedError inside `torch.func.jvp` and the like, if one of the tensors has a tangent."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{op} got a tangent, and its kernels have no forward-mode derivative: use reverse mode (backward()), or "
            "selective_scan(..., backend='reference')"
        )
