"""Whether an op is called and nothing else, and whether a backward may come."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn import Parameter


def is_plain_call(tensors: Iterable[Tensor]) -> bool:
    """Whether nobody compiles, traces, transforms, profiles or intercepts a call with these tensors.

    Then what an op computes may be called past torch's dispatcher, which takes a tenth of the time of a small image.
    Who needs gradients needs the dispatcher, too.
    """
    watched = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or profiler._is_profiler_enabled
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )
    return not watched and all(type(tensor) in (Tensor, Parameter) and _has_numbers(tensor) for tensor in tensors)


def _has_numbers(tensor: Tensor) -> bool:
    """In memory as they are, not to be negated or taken for zero first."""
    return not tensor.is_neg() and not tensor._is_zerotensor()


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
