"""Whether an op is called and nothing else."""

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
    return not watched and all(type(tensor) in (Tensor, Parameter) and not tensor.is_neg() for tensor in tensors)
