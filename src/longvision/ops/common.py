"""What every op asks before it computes: which backend, whether its arguments fit, what a backward will need."""

import functools
import os
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

from longvision.ops.kernels.cpp.compiler import INSTALL as COMPILER
from longvision.ops.kernels.cpp.library import DEFINITIONS as CPU_DTYPES
from longvision.ops.kernels.cpp.library import available as has_cpu_kernels
from longvision.ops.kernels.triton import DTYPES as TRITON_DTYPES
from longvision.ops.kernels.triton import available as has_triton_kernels

BACKENDS = ("cpu", "triton", "chunked", "reference")
BACKEND_VARIABLE = "LONGVISION_SCAN_BACKEND"  # of every op, whatever its name says

# Dispatch


def choose_backend(asked: str | None, device: str, dtype: torch.dtype) -> str:
    """The backend asked for by argument or environment variable, or the fastest for tensors of that kind.

    Raises:
        ValueError: it does not exist, or cannot run here; the message says what it lacks.
    """
    name = asked or os.environ.get(BACKEND_VARIABLE)
    if not name:
        if has_cpu_kernels(device, dtype):
            return "cpu"
        return "triton" if device == "cuda" and has_triton_kernels(device, dtype) else "chunked"
    origin = "backend" if asked else BACKEND_VARIABLE
    if name not in BACKENDS:
        raise ValueError(f"{origin}={name!r} is not a backend of longvision.ops: choose one of {', '.join(BACKENDS)}")
    if name == "cpu" and not has_cpu_kernels(device, dtype):
        needs = _lacking_cpu(device, dtype)
    elif name == "triton" and not has_triton_kernels(device, dtype):
        needs = _lacking_triton(device, dtype)
    else:
        return name
    raise ValueError(
        f"{origin}={name!r} cannot take {dtype} on {device}: it needs {needs}; without this choice the fastest that "
        "fits is taken"
    )


def _lacking_cpu(device: str, dtype: torch.dtype) -> str:
    lacking = [] if device == "cpu" else ["a CPU"]
    if dtype not in CPU_DTYPES:
        lacking.append("float32, float64 or bfloat16")
    return " and ".join(lacking) or COMPILER


def _lacking_triton(device: str, dtype: torch.dtype) -> str:
    interpreted = device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    of_nvidia = device == "cuda" and torch.version.cuda is not None
    lacking = [] if interpreted or of_nvidia else ["an NVIDIA GPU"]
    if dtype not in TRITON_DTYPES:
        lacking.append("float32, bfloat16 or float16")
    return " and ".join(lacking) or "the package triton, able to start kernels here"


# Shapes and dtypes: kernels would read beyond the end of a tensor that does not fit, or at an invalid address.


def check_tokens(op: str, x: Tensor) -> None:
    """Raises TypeError or ValueError unless x is (batch, tokens, channels) of real numbers, none of the last two 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op} got x of type {type(x).__name__}, expected a torch.Tensor")
    if x.ndim != 3:
        raise ValueError(
            f"{op} got x of shape {tuple(x.shape)}, expected (batch, tokens, channels): channels come last"
        )
    for size, name in zip(x.shape[1:], ("tokens", "channels")):
        if size == 0:
            raise ValueError(f"{op} got no {name}: x needs at least one")
    check_fits(op, "x", x, tuple(x.shape), x)


def check_fits(op: str, name: str, tensor: Tensor | None, shape: tuple[int, ...], x: Tensor) -> None:
    """Raises TypeError or ValueError unless it is a tensor of that shape, of real numbers, where x is."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op} got {name} of type {type(tensor).__name__}, expected a torch.Tensor of shape {shape}")
    if tensor.shape != shape:
        raise ValueError(
            f"{op} got {name} of shape {tuple(tensor.shape)}, expected {shape}, since x is {tuple(x.shape)}: channels "
            "come last"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"{op} got {name} of type {tensor.dtype}, expected a floating-point one: convert it")
    if tensor.device != x.device:
        raise ValueError(f"{op} got {name} on {tensor.device} and x on {x.device}: move one to the other")


def columns(op: str, name: str, matrix: Tensor) -> int:
    """Of a matrix that has some. Raises TypeError or ValueError for anything else."""
    if not isinstance(matrix, Tensor):
        raise TypeError(f"{op} got {name} of type {type(matrix).__name__}, expected a torch.Tensor of two dimensions")
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{op} got {name} of shape {tuple(matrix.shape)}, expected two dimensions, the last not empty")
    return matrix.shape[1]


# Packed sequences: images of different sizes one behind the other in one row of tokens, as FlashAttention's varlen.

_looked_at: WeakIdKeyDictionary = WeakIdKeyDictionary()  # boundaries on a GPU -> their version, and the tokens


def check_cu_seqlens(cu_seqlens: Tensor, x_BME: Tensor) -> None:
    """Check that `cu_seqlens`, (S + 1,) integers, packs S sequences into x's one row of tokens.

    To look at numbers on a GPU is to wait for it, so they are looked at once: the blocks of a model, which are all
    given the same tensor, do not wait again unless it was written to.

    Raises:
        TypeError, ValueError: it does not.
    """
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"cu_seqlens of type {type(cu_seqlens).__name__}, expected a torch.Tensor of integers")
    if cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point() or len(cu_seqlens) < 2 or x_BME.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens of shape {tuple(cu_seqlens.shape)} and type {cu_seqlens.dtype} with x of shape "
            f"{tuple(x_BME.shape)}: expected at least two integers, and all sequences packed in a batch of one"
        )
    # The values are not known yet, or cannot be asked for.
    if torch.compiler.is_compiling() or (cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if _is_free_to_read(cu_seqlens):
        return _check_boundaries(cu_seqlens, x_BME.shape[1])
    seen = _version(cu_seqlens), x_BME.shape[1]
    if _looked_at.get(cu_seqlens) != seen:
        _check_boundaries(cu_seqlens, x_BME.shape[1])
        _looked_at[cu_seqlens] = seen


def cu_seqlens_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """int32 (S + 1,): the boundaries of sequences of these lengths, which no op looks at again."""
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
    if not torch.compiler.is_compiling():
        _looked_at[cu_seqlens] = _version(cu_seqlens), sum(lengths)
    return cu_seqlens


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _is_free_to_read(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _check_boundaries(cu_seqlens: Tensor, tokens: int) -> None:
    found = cu_seqlens.tolist()
    if found[0] != 0 or found[-1] != tokens or any(a >= b for a, b in pairwise(found)):
        raise ValueError(
            f"cu_seqlens {found} must rise from 0 to the number of tokens, {tokens}, with no empty sequence"
        )


def boundaries_for_cpu(cu_seqlens: Tensor | None, tokens: int) -> Tensor:
    """(S + 1,) int64 on the CPU, as the kernels in C++ read them; without packing, of the one sequence.

    Raises ValueError for wrong values: in a compiled graph nobody has looked at them before.
    """
    if cu_seqlens is None:
        return _one_sequence(tokens)
    _check_boundaries(cu_seqlens, tokens)
    return cu_seqlens.to("cpu", torch.int64).contiguous()


@functools.lru_cache
def _one_sequence(tokens: int) -> Tensor:
    return torch.tensor([0, tokens])


# Precision


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """The tensor's, or inside autocast the lower one that a matmul would use; autocast leaves float64 alone."""
    if tensor.dtype == torch.float64 or not autocasts(tensor):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on; the meta device has none."""
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@torch.fx.wrap  # the dtype of a traced tensor is not known: one node of the graph
def widened(tensor: Tensor) -> Tensor:
    """In float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# What is saved for a backward


def may_need_backward(tensors: Iterable[Tensor]) -> bool:
    """Whether what a backward needs is to be saved."""
    if not torch.is_grad_enabled():
        return False
    # Inside vmap a tensor does not say whether the one that it stands for needs a gradient.
    hidden = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    return hidden or any(tensor.requires_grad for tensor in tensors)


def is_unseen() -> bool:
    """Whether an op may compute at once, past the dispatcher: nobody compiles, traces, transforms or profiles."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    )


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether each is what stands in its memory, on a CPU: one that is lazily negated or zero, sparse or a subclass's
    is not."""
    return all(
        type(tensor) in (Tensor, Parameter) and torch._C._dispatch_keys(tensor).raw_repr() in _plain_keys()
        for tensor in tensors
    )


@functools.cache
def _plain_keys() -> set[int]:
    """What the dispatcher knows of tensors on a CPU that have nothing special, made outside of inference mode or in."""
    with torch.inference_mode(False):
        outside = torch.empty(0)
    with torch.inference_mode():
        inside = torch.empty(0)
    return {torch._C._dispatch_keys(tensor).raw_repr() for tensor in (outside, inside)}


def check_saved(op: str, states: Tensor) -> None:
    """Raises RuntimeError in a backward for which nothing was saved."""
    if states.ndim == 1:
        raise RuntimeError(
            f"{op} saved nothing for a backward, since it was exported or traced under no_grad: do that with gradients"
        )


# Forward-mode derivatives: there are none, and torch would silently take them for zero.


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
