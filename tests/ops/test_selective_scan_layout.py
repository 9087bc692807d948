"""Tensors whose tokens are contiguous, as other libraries lay them: (B, E, M), and transposed for the scan."""

import json

import pytest
import safetensors
import torch

from longvision.ops.kernels.cpp.record import by_channel
from support.layouts import laid_out
from support.scan_cases import (
    BACKENDS,
    NAMES,
    PER_TOKEN,
    assert_identical,
    make,
    needs_compiler,
    scan,
    value_and_grads,
)

pytestmark = pytest.mark.usefixtures("poison")

LAID_OUT = ("x", "delta", "z")  # gradients of these lie as they do
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def turned(tensors, names=PER_TOKEN):
    return {name: laid_out(t, "permuted") if name in names and t.shape[-1] > 1 else t for name, t in tensors.items()}


def of_leaves(tensors, grad, **options):
    """Without a copy, which would be contiguous."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    y = scan(leaves, "cpu", delta_softplus=True, **options)
    y.backward(grad)
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


@needs_compiler
@each_dtype
@pytest.mark.parametrize("reverse", [False, True], ids=["forth", "back"])
@pytest.mark.parametrize("tokens, width, states", [(2, 2, 1), (63, 19, 4), (64, 64, 3), (70, 37, 16), (197, 72, 1)])
def test_the_same_bits_without_a_copy(dtype, reverse, tokens, width, states):
    tensors, grad = make(2, tokens, width, states, dtype), torch.randn(2, tokens, width).to(dtype)
    truth = value_and_grads(tensors, "cpu", grad, delta_softplus=True, reverse=reverse)
    got = of_leaves(turned(tensors), laid_out(grad, "permuted"), reverse=reverse)
    assert_identical(got, truth)
    assert all(by_channel(got[name]) and got[name].mT.is_contiguous() for name in ("y", *LAID_OUT))


@needs_compiler
@pytest.mark.parametrize("names", [("x",), ("delta",), ("z",), ("x", "delta"), ("B", "C")], ids=str)
def test_each_tensor_in_a_layout_of_its_own(names):
    tensors, grad = make(2, 70, 18, 4, torch.float32), torch.randn(2, 70, 18)
    truth = value_and_grads(tensors, "cpu", grad, delta_softplus=True)
    got = of_leaves(turned(tensors, names), grad)
    assert_identical(got, truth)
    assert [name for name in LAID_OUT if by_channel(got[name])] == [name for name in LAID_OUT if name in names]
    assert by_channel(got["y"]) == ("x" in names)


@needs_compiler
@pytest.mark.parametrize("options", [
    {"cu_seqlens": torch.tensor([0, 1, 66, 130])}, {"cu_seqlens": torch.tensor([0, 64, 130]), "reverse": True},
    {"grid": (13, 10)},
], ids=str)  # fmt: skip
def test_beside_other_options(options):
    tensors, grad = make(1, 130, 19, 4, torch.float32), torch.randn(1, 130, 19)
    truth = value_and_grads(tensors, "cpu", grad, delta_softplus=True, **options)
    assert_identical(of_leaves(turned(tensors), laid_out(grad, "permuted"), **options), truth)


@needs_compiler
@pytest.mark.parametrize("width, dtype", [(1, torch.float32), (19, torch.bfloat16), (38, torch.float64)], ids=str)
def test_groups(width, dtype):
    """Three of so many channels: of one, and of vectors that are not full."""
    tensors, grad = make(2, 70, 3 * width, 4, dtype), torch.randn(2, 70, 3 * width).to(dtype)
    tensors["B"] = torch.randn(2, 70, 3, 4).to(dtype)
    truth = value_and_grads(tensors, "cpu", grad, delta_softplus=True)
    assert_identical(of_leaves(turned(tensors, LAID_OUT), laid_out(grad, "permuted")), truth)


@pytest.mark.parametrize("shape, strides, expected", [
    ((2, 70, 19), (1330, 1, 70), True), ((1, 70, 19), (0, 1, 70), True),
    ((2, 70, 19), (1330, 19, 1), False), ((2, 70, 19), (70, 1, 0), False), ((2, 70, 19), (0, 0, 0), False),
    ((2, 70, 1), (70, 1, 70), False), ((2, 1, 19), (19, 1, 1), False), ((2, 1, 19), (38, 1, 2), False),
], ids=str)  # fmt: skip
def test_whose_tokens_are_contiguous(shape, strides, expected):
    assert by_channel(torch.empty_strided(shape, strides)) == expected


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("grid", [None, (4, 5)])
def test_opcheck(backend, grid):
    tensors = turned(make(2, 20, 3, 2, torch.float32))
    arguments = *(tensors[name] for name in NAMES), None, None, True, False, grid, backend, False, True
    leaves = [a.detach().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.library.opcheck(torch.ops.longvision.selective_scan, leaves)
    *_, states = torch.ops.longvision.selective_scan(*arguments)
    grads = laid_out(torch.randn(2, 20, 3), "permuted"), None, states
    torch.library.opcheck(torch.ops.longvision.selective_scan_backward, (*grads, *arguments[:-2]))


# What the published reference computes, in its layout


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_golden_table(shared, backend):
    """Fifty cases of mamba-ssm's: B and C per token, in groups and constant, and the state behind the last token."""
    path = shared / "golden" / "backbones" / "selective_scan.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safetensors.safe_open(path, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(cases) == 50
    for case, described in cases.items():
        of = {name.removeprefix(f"{case}."): t for name, t in tensors.items() if name.startswith(f"{case}.")}
        _check_golden(case, of, backend, described["delta_softplus"])


def _check_golden(case, of, backend, softplus):
    leaves = {name: of[name].clone().requires_grad_() for name in ("u", *NAMES[1:]) if name in of}
    ours = {name: leaf if name in ("A", "D", "delta_bias") else _channels_last(leaf) for name, leaf in leaves.items()}
    given = {name: ours.get("u" if name == "x" else name) for name in NAMES}
    y, last = scan(given, backend, delta_softplus=softplus, return_last_state=True)
    y.mT.backward(of["grad_out"])
    got = {"out": y.mT, "last_state": last, **{f"grad.{name}": leaf.grad for name, leaf in leaves.items()}}
    for name, value in got.items():
        error = (value - of[name]).norm() / (of[name].norm() + 1e-30)
        # Float32 on both sides, which was up to 4.1e-7 off float64 on the other.
        assert error < 2e-6, f"{case} {name}: {error}"


def _channels_last(tensor):
    """(B, n, L) or (B, G, N, L) as the scan takes it; a constant, (D, N), as it is."""
    if tensor.ndim == 4:
        return tensor.permute(0, 3, 1, 2)
    return tensor.mT if tensor.ndim == 3 else tensor
