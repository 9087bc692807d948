"""The scan on Triton kernels from a state to a state, with groups of B and C, and by columns; the cross scan."""

import pytest
import torch

from longvision.ops import cross_scan, selective_scan
from longvision.ops.cross_scan.reference import cross_scan_reference
from support.scan_cases import NAMES, in_double, make, value_and_grads
from support.triton_cases import TOLERANCE, assert_norms, launched, moved, recorded

pytestmark = pytest.mark.usefixtures("poison")

OVER_TOKENS = ("A", "D", "delta_bias", "last", "initial_state")
ONE, MANY = 1, 1056  # segments, by the programs that are wanted
each_number_of_segments = pytest.mark.parametrize("programs", [ONE, MANY])


def case(tokens, width, states, dtype=torch.float32, B=None, C=None, initial=False):
    """B and C in so many groups."""
    tensors = make(1, tokens, width, states, dtype)
    for name, groups in (("B", B), ("C", C)):
        if groups is not None:
            tensors[name] = torch.randn(1, tokens, groups, states).to(dtype)
    return tensors | ({"initial_state": torch.randn(1, width, states)} if initial else {})


def check(device, tensors, last=False, **options):
    x = tensors["x"]
    grads = [torch.randn(x.shape).to(x.dtype), torch.randn(1, *tensors["A"].shape) if last else None]
    options = {"delta_softplus": True, **options}
    there = [None if grad is None else grad.to(device) for grad in grads]
    got = moved(value_and_grads(moved(tensors, device), "triton", *there, **options), "cpu")
    double = [None if grad is None else grad.double() for grad in grads]
    assert_norms(got, value_and_grads(in_double(tensors), "reference", *double, **options), TOLERANCE, OVER_TOKENS)


@each_number_of_segments
@pytest.mark.parametrize("reverse", [False, True])
def test_from_a_state_to_a_state(device, chunk, programs, reverse):
    chunk(2)
    with launched(programs=programs):
        check(device, case(7, 5, 1, initial=True), last=True, reverse=reverse)


@pytest.mark.parametrize("initial, last", [(True, False), (False, True)])
def test_from_a_state_or_to_one(device, initial, last):
    check(device, case(3, 5, 2, initial=initial), last=last)


@pytest.mark.parametrize("programs, reverse, grid", [
    (ONE, False, (2, 3)), (MANY, True, (3, 3)), (ONE, True, (1, 5)), (MANY, False, (5, 2)),
], ids=str)  # fmt: skip
def test_by_columns(device, chunk, programs, reverse, grid):
    chunk(2)
    with launched(programs=programs):
        check(device, case(grid[0] * grid[1], 5, 1), reverse=reverse, grid=grid)


@pytest.mark.parametrize("B, C, width, programs", [
    (2, 2, 6, ONE), pytest.param(2, 3, 6, MANY, marks=pytest.mark.slow),
    pytest.param(2, None, 80, ONE, marks=pytest.mark.slow), (None, 3, 3, MANY),
], ids=str)  # fmt: skip
def test_groups(device, chunk, B, C, width, programs):
    """Tiles of 32 channels, of one group each."""
    chunk(2)
    with launched(programs=programs):
        check(device, case(3 if width == 3 else 5, width, 1, B=B, C=C))


@pytest.mark.slow
def test_all_at_once_in_half_precision(device):
    check(device, case(6, 4, 2, torch.bfloat16, B=2, initial=True), last=True, reverse=True, grid=(2, 3))


@pytest.mark.slow
def test_more_states_than_a_backward_kernel_takes(device):
    check(device, case(2, 4, 18, B=2, initial=True), last=True)


def test_constants_go_to_plain_torch(device):
    tensors = moved(case(3, 4, 2), device) | {"B": torch.randn(4, 2, device=device)}
    with recorded() as found:
        selective_scan(*(tensors[name] for name in NAMES), backend="triton")
    assert not found


@pytest.mark.slow
def test_opcheck(device):
    tensors = moved(case(4, 2, 1, B=2, initial=True), device)
    given = [tensors.get(name) for name in (*NAMES, "initial_state")]
    arguments = *given, None, True, True, (2, 2), "triton", True, True
    torch.library.opcheck(torch.ops.longvision.selective_scan, arguments)
    y, last, states = torch.ops.longvision.selective_scan(*arguments)
    grads = torch.ones_like(y), torch.ones_like(last), states
    torch.library.opcheck(torch.ops.longvision.selective_scan_backward, (*grads, *arguments[:-2]))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
def test_cross_scan(device, chosen, dtype):
    tensors = {
        "x": torch.randn(1, 6, 5),
        "delta": torch.randn(1, 6, 4, 5) - 1,
        "A": -torch.rand(4, 5, 1) - 0.1,
        "B": torch.randn(1, 6, 4, 1),
        "C": torch.randn(1, 6, 4, 1),
        "D": torch.randn(4, 5),
        "delta_bias": torch.randn(4, 5),
    }
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    grad = torch.randn(1, 6, 5).to(dtype)

    def run(function, tensors, grad):
        leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
        y = function(*leaves.values(), (2, 3))
        y.backward(grad)
        return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}

    got = moved(run(cross_scan, moved(tensors, device), grad.to(device)), "cpu")
    assert_norms(got, run(cross_scan_reference, in_double(tensors), grad.double()), TOLERANCE, ("A", "D", "delta_bias"))
