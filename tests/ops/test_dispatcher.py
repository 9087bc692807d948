"""The fused ops among what torch's dispatcher may do with a call."""

import pytest
import torch
from scan_cases import needs_compiler
from test_mamba_inner import make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from longvision.ops import mamba_block, mamba_inner, selective_scan

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]


class Names(TorchDispatchMode):
    """Of the ops that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def block(x, mixer):
    return mamba_block(x, torch.ones(5), mixer.walks, mixer.in_proj, mixer.out_proj)


def inner(x, mixer):
    return mamba_inner(x, mixer.walks, mixer.in_proj, mixer.out_proj)


@pytest.mark.parametrize("op", [block, inner])
def test_the_same_values_with_and_without_gradients(op):
    mixer = make(2, 65, 19, (False, True), torch.float32)
    with_gradients = op(mixer.x.clone().requires_grad_(), mixer)
    with torch.no_grad():  # also of what needs gradients elsewhere
        without = op(mixer.x.clone().requires_grad_(), mixer)
    assert torch.equal(without, with_gradients) and torch.equal(op(mixer.x, mixer), with_gradients)
    assert with_gradients.requires_grad and not without.requires_grad


@pytest.mark.parametrize("op", [block, inner])
def test_a_mode_sees_the_op(op):
    mixer = make(2, 65, 19, (False, True), torch.float32)
    with Names() as names:
        op(mixer.x, mixer)
    assert f"longvision::mamba_{op.__name__}" in names.seen


@pytest.mark.parametrize("op", [block, inner])
def test_a_profiler_sees_the_op(op):
    mixer = make(2, 65, 19, (False, True), torch.float32)
    with torch.profiler.profile() as profile:
        op(mixer.x, mixer)
    assert f"longvision::mamba_{op.__name__}" in [event.name for event in profile.events()]


@pytest.mark.parametrize("op", [block, inner])
def test_fake_tensors_stay_fake(op):
    mixer = make(2, 65, 19, (False, True), torch.float32)
    with FakeTensorMode() as mode:
        fake = mixer.changed(mode.from_tensor)
        inside = inner(fake.x, fake)
    outside = inner(fake.x, fake)  # a fake tensor carries its mode
    assert inside.shape == outside.shape == mixer.x.shape
    assert type(inside) is type(outside) is type(fake.x)


@pytest.mark.parametrize("op", [block, inner])
def test_a_lazy_negation_is_made_first(op):
    mixer = make(2, 65, 19, (False, True), torch.float32)
    lazy = torch.complex(torch.zeros_like(mixer.x), -mixer.x).conj().imag
    assert lazy.is_neg()
    assert torch.equal(op(lazy, mixer), op(mixer.x, mixer))


@pytest.mark.parametrize("op", [block, inner])
def test_a_tensor_of_no_memory(op):
    """Zeros that torch has not written: as they are there would be no address to read at."""
    mixer = make(2, 65, 19, (False, True), torch.float32)
    zeros = torch._efficientzerotensor(tuple(mixer.x.shape))
    assert torch.equal(op(zeros, mixer), op(torch.zeros_like(mixer.x), mixer))


def scan(x, backend):
    A, B = -torch.ones(3, 2), torch.ones(*x.shape[:2], 2)
    return selective_scan(x, torch.ones_like(x), A, B, B, backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_a_backward_behind_vmap(backend):
    x = torch.randn(4, 1, 7, 3, requires_grad=True)
    torch.func.vmap(lambda x: scan(x, backend), randomness="same")(x).square().sum().backward()
    alone = x.detach().requires_grad_()
    torch.stack([scan(x, backend) for x in alone]).square().sum().backward()
    torch.testing.assert_close(x.grad, alone.grad)


def test_a_backward_of_what_kept_nothing():
    """As in a graph that was exported under no_grad, and then is called with gradients."""
    mixer = make(1, 65, 19, (False, True), torch.float32)
    x, ops = mixer.x.requires_grad_(), torch.ops.longvision
    of_inner = mixer.of_the_op(None, keep=False)
    parameters, directions, in_proj, out_proj = of_inner[1:5]
    of_block = x, torch.ones(5), parameters, directions, in_proj, out_proj, None, 1e-5, torch.float32, "cpu", False
    A, B = -torch.ones(5, 2), torch.ones(1, 65, 2)
    of_scan = x, x, A, B, B, None, None, None, None, False, False, "cpu", False
    for op, arguments in (
        (ops.mamba_inner, of_inner),
        (ops.mamba_block, of_block),
        (ops.selective_scan, of_scan),
    ):
        y, *_ = op(*arguments)
        with pytest.raises(RuntimeError, match=f"{op.__name__} kept nothing for a backward, since it was exported"):
            y.sum().backward()
