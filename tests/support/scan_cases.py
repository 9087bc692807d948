"""Inputs for the scan, its gradients, and how near to the truth it has to come: shared by the tests of the scan."""

import pytest
import torch

from longvision.ops import selective_scan
from longvision.ops.kernels.cpp.compiler import CompilerError, find_compiler

NAMES = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")
PER_TOKEN = ("x", "delta", "B", "C", "z")

# |got - truth| / |truth| of what there is per token (y and the gradients of x, delta, B, C, z), where the truth is the
# reference in float64, fed with the same (rounded) inputs.
# float64, float32: one rounding is 1e-16 or 6e-8; some tens of them meet in a value, those of the tokens that the state
# remembers and of the sums over channels. Measured: 1.6e-15 and 5.8e-7 at most. The float32 kernels take a decay to
# 3e-7 where the state soon forgets.
# bfloat16: all is float32 inside, and each result is rounded once, by 2**-8 of a value at most.
TOLERANCE = {torch.float64: 3e-15, torch.float32: 1e-6, torch.bfloat16: 2**-8}
# The gradients of A, D and delta_bias are sums over all tokens, which cancel: 6.9e-15 and 2.9e-6 at most.
SUMS = 4  # times as far


def compiler_exists():
    try:
        find_compiler()
    except CompilerError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not compiler_exists(), reason="no C++ compiler: no kernels for the CPU")
CPU = pytest.param("cpu", marks=needs_compiler)
BACKENDS = (CPU, "chunked", "reference")
FASTER = (CPU, "chunked")  # every backend beside the reference


def make(batch, tokens, width, states, dtype=torch.float64, *, D=True, z=True, bias=True, softplus=True, seed=0):
    """-> tensors by name (None where absent): steps of 0.01 to 1, decay rates of 0.1 to 2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    tensors = {
        "x": normal(batch, tokens, width),
        "delta": normal(batch, tokens, width) - 1 if softplus else 0.01 + uniform(batch, tokens, width),
        "A": -0.1 - 1.9 * uniform(width, states),
        "B": normal(batch, tokens, states),
        "C": normal(batch, tokens, states),
        "D": normal(width) if D else None,
        "z": normal(batch, tokens, width) if z else None,
        "delta_bias": (normal(width) if softplus else uniform(width)) if bias else None,
    }
    return {name: None if tensor is None else tensor.to(dtype) for name, tensor in tensors.items()}


def scan(tensors, backend, **options):
    """`tensors` may hold an "initial_state" too."""
    initial_state = tensors.get("initial_state")
    given = [tensors[name] for name in NAMES]
    return selective_scan(*given, initial_state_BEN=initial_state, backend=backend, **options)


def value_and_grads(tensors, backend, grad, grad_last=None, **options):
    """-> y and the gradient of sum(grad * y) with respect to each tensor that is there; with the gradient of the last
    state, that too."""
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    y = scan(leaves, backend, return_last_state=grad_last is not None, **options)
    got = {"y": y} if grad_last is None else dict(zip(("y", "last"), y))
    grads = (grad, grad_last)[: len(got)]
    torch.autograd.backward(list(got.values()), [g.to(t.dtype) for g, t in zip(grads, got.values())])
    values = {name: t.detach() for name, t in got.items()}
    return values | {name: leaf.grad for name, leaf in leaves.items() if leaf is not None}


def in_double(tensors):
    return {name: None if t is None else t.double() for name, t in tensors.items()}


def distance(got, truth):
    """Largest difference, as a part of the largest true value. Not finite counts as far away."""
    assert got.shape == truth.shape
    assert torch.isfinite(got).all()
    return ((got.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300)).item()


def assert_close(got, truth, tolerance):
    assert got.keys() == truth.keys()
    far = {name: d for name in truth if not (d := distance(got[name], truth[name])) <= tolerance}
    assert not far, f"beyond {tolerance}: {far}"


def assert_true(tensors, grad, got, grad_last=None, **options):
    """`got`, output and gradients by name, is the float64 reference's to the TOLERANCE of its dtype."""
    grad_last = None if grad_last is None else grad_last.double()
    truth = value_and_grads(in_double(tensors), "reference", grad.double(), grad_last, **options)
    assert got.keys() == truth.keys()
    dtypes = {name: t.dtype for name, t in tensors.items() if t is not None}
    dtypes |= {"y": dtypes["x"], "last": torch.promote_types(dtypes["x"], torch.float32)}
    for name, expected in truth.items():
        assert got[name].shape == expected.shape and got[name].dtype == dtypes[name], name
        assert torch.isfinite(got[name]).all(), name
        # 1e-30: what is so small that float32 has no digits left for it
        error = (got[name].double() - expected).norm() / (expected.norm() + 1e-30)
        dtype = got[name].dtype
        factor = 1 if name in ("y", *PER_TOKEN) or dtype == torch.bfloat16 else SUMS
        assert error <= factor * TOLERANCE[dtype], f"{name}: {error:.1e}"


def assert_identical(got, truth):
    """Bit for bit."""
    assert got.keys() == truth.keys()
    differing = [name for name in truth if not torch.equal(got[name], truth[name])]
    assert not differing, differing
