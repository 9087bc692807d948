"""Whether a fused op may do a module's work instead of calling it."""

from torch import nn


def is_bare(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is what calling its class is: no adapter around it, no hook, no other forward."""
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(module._backward_hooks, module._backward_pre_hooks),
    )
    own_forward = type(module).forward is not kind.forward or "forward" in vars(module)
    return not own_forward and not any(hooks)
