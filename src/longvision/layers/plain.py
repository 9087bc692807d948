"""Whether a fused op may do a module's work instead of calling it, and how it is called where it may not."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from longvision.ops import common
from longvision.ops.causal_conv1d.reference import causal
from longvision.ops.mixer.reference import Call, linear

TAPS = 4  # of the convolution


def set_fused(model: nn.Module, fused: bool = True) -> None:
    """Let the blocks, mixers and norms of a model run on longvision's fused ops, or with False in plain torch.

    Unfused they give the same to rounding and none of the ops is called: `torch.export` gives a graph of torch's own
    operators, hooks see every layer. It takes more time and memory. `torch.fx` traces the layers of any model unfused.
    """
    for module in model.modules():
        if isinstance(getattr(module, "fused", None), bool):
            module.fused = fused  # type: ignore[assignment]


def runs_fused(module: nn.Module, x: Tensor) -> bool:
    """Whether the module is to run on fused ops, which torch.fx cannot look into."""
    return bool(module.fused) and not isinstance(x, torch.fx.Proxy)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is what calling its class is: no adapter around it, no hook on it, no other forward.

    Hooks on all modules of the process are not asked for: see `anybody_watches`.
    """
    return type(module).forward is kind.forward and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


SETTINGS = "training", "fused", "eps", "direction", "reverse", "stride", "padding", "dilation", "groups"


def state_of(module: nn.Module) -> list:
    """Whatever decides how a fused op reads the module and those inside it: equal at two times if nothing was put in
    the place of a layer or a parameter, on or around it, in between.

    The numbers in the parameters are not looked at. An id tells for as long as somebody holds the parameter.
    """
    found: list = [_has_any_global_hook()]
    modules = [module]
    while modules:
        module = modules.pop()
        own = module.__dict__
        hooks = own["_forward_hooks"], own["_forward_pre_hooks"], own["_backward_hooks"], own["_backward_pre_hooks"]
        found += (type(module).forward, len(own), any(hooks), *map(own.get, SETTINGS))
        for parameter in own["_parameters"].values():
            if parameter is not None:
                found += (id(parameter), parameter.data_ptr(), parameter.dtype, parameter.shape)
                found.append(parameter.is_contiguous())
        modules += own["_modules"].values()
    return found


def anybody_watches() -> bool:
    """Whether there is a hook on all modules of the process."""
    return _has_any_global_hook()


def is_weight(module: nn.Module, bias: bool = False) -> bool:
    """Whether the module is no more than a Linear's weight, and a bias if it is to have one."""
    return is_plain(module, nn.Linear) and (module.bias is not None) == bias


def is_filter(module: nn.Module) -> bool:
    """Whether the module is no more than the weight and the bias of a depthwise convolution."""
    is_torch_s = getattr(type(module), "_conv_forward", None) is nn.Conv1d._conv_forward
    return is_torch_s and is_plain(module, nn.Conv1d) and module.bias is not None


def as_call(module: nn.Linear, matmul: Callable[[Tensor, Tensor], Tensor] = linear) -> Call:
    """What projects tokens: `matmul` with the weight, or the module where it is more than that."""
    return partial(matmul, module.weight) if _is_read(module) else partial(_called, module)


def as_call_and_bias(module: nn.Linear) -> tuple[Call, Tensor | None]:
    """The same for dt_proj without its bias, and the bias: it is added in float32, inside the scan. Where the module is
    called it adds its bias itself, in float32 too."""
    bias = getattr(module, "bias", None)
    if _is_read(module, bias=bias is not None):
        return partial(linear, module.weight), bias
    return partial(_called_wide, module), None


def check_filter(name: str, module: nn.Module) -> None:
    """Raises ValueError for a convolution that is no causal depthwise one, by name."""
    # Below an adapter there is another.
    convolution = module if isinstance(module, nn.Conv1d) else getattr(module, "base_layer", module)
    if not isinstance(convolution, nn.Conv1d):
        return
    expected = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": convolution.out_channels}
    for setting, value in expected.items():
        if (given := getattr(convolution, setting)) != value:
            raise ValueError(
                f"{name} has {setting}={given}, expected {value}: the mixer pads it and knows no other setting"
            )


def convolved(module: nn.Module, x_BME: Tensor, reverse: bool, cu_seqlens: Tensor | None) -> Tensor:
    """(B, M, E) -> (B, M, E): conv1d called, on (B, E, tokens and the zeros before them), and SiLU."""
    taps = getattr(getattr(module, "base_layer", module), "kernel_size", (TAPS,))[0]
    return F.silu(causal(partial(_called, module), taps, x_BME, reverse, cu_seqlens))


def _is_read(module: nn.Linear, bias: bool = False) -> bool:
    return is_weight(module, bias) and not anybody_watches()


def _called(module: nn.Module, x: Tensor) -> Tensor:
    """In x's dtype, whatever the weight's is, as the ops take it; autocast does that by itself."""
    if x.dtype == torch.float16:
        return _called_wide(module, x).to(x.dtype)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or common.autocasts(x) or weight.dtype == x.dtype:
        return module(x)
    return module(x.to(weight.dtype)).to(x.dtype)


def _called_wide(module: nn.Module, x: Tensor) -> Tensor:
    """In float32 or better."""
    wide = {name: common.widened(parameter) for name, parameter in module.named_parameters()}
    with torch.autocast(x.device.type, enabled=False) if common.autocasts(x) else nullcontext():
        return functional_call(module, wide, (common.widened(x),))
