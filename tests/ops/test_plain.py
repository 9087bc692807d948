"""Calls past torch's dispatcher: only where nobody could tell."""

import sys

import pytest
import torch
from scan_cases import needs_compiler
from test_mamba_inner import make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from longvision.ops import mamba_block, mamba_inner
from longvision.ops.plain import is_plain_call

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]


class Names(TorchDispatchMode):
    """Of the ops that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    pass


def block(x, mixer):
    return mamba_block(x, torch.ones(5), mixer.walks, mixer.in_proj, mixer.out_proj)


def inner(x, mixer):
    return mamba_inner(x, mixer.walks, mixer.in_proj, mixer.out_proj)


@pytest.mark.parametrize("op", [block, inner])
def test_the_same_values_as_through_the_dispatcher(op, monkeypatch):
    mixer = make(2, 65, 19, (False, True), torch.float32)
    module = sys.modules[f"longvision.ops.mamba_{op.__name__}.op"]
    dispatched = op(mixer.x.clone().requires_grad_(), mixer)
    assert dispatched.grad_fn is not None
    monkeypatch.setattr(module, f"_mamba_{op.__name__}", None)
    with torch.no_grad():  # also of what needs gradients elsewhere
        plain = op(mixer.x.clone().requires_grad_(), mixer)
    assert torch.equal(plain, dispatched)
    assert torch.equal(op(mixer.x, mixer), dispatched)
    assert not plain.requires_grad


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


def test_who_watches():
    x = torch.ones(1)
    assert is_plain_call([x, torch.nn.Parameter(x)])
    assert not is_plain_call([x, x.as_subclass(Wrapped)])
    with TorchFunctionMode():
        assert not is_plain_call([x])
    seen = []
    torch.func.vmap(lambda x: seen.append(is_plain_call([torch.ones(1)])) or x)(x)
    torch.jit.trace(lambda x: seen.append(is_plain_call([torch.ones(1)])) or x + 1, x, check_trace=False)
    assert seen and not any(seen)
