"""The fused ops among what torch's dispatcher may do with a call."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from longvision.ops import selective_scan
from support.mixer_cases import CHANNELS, MAKERS, make_block
from support.scan_cases import needs_compiler

pytestmark = [pytest.mark.usefixtures("poison"), needs_compiler]


class Names(TorchDispatchMode):
    """Of the ops that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


mixer_and_block = pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)


@mixer_and_block
def test_the_same_values_with_and_without_gradients(maker):
    case = maker(2, 65, dtype=torch.float32)
    wanting = case._replace(x=case.x.clone().requires_grad_())
    with_gradients = wanting.call()
    with torch.no_grad():  # also of what needs gradients elsewhere
        without = wanting.call()
    assert torch.equal(without, with_gradients) and torch.equal(case.call(), with_gradients)
    assert with_gradients.requires_grad and not without.requires_grad


@mixer_and_block
def test_a_mode_and_a_profiler_see_the_op(maker):
    case = maker(2, 65, dtype=torch.float32)
    with Names() as names:
        case.call()
    with torch.profiler.profile() as profile:
        case.call()
    assert "longvision::mixer" in names.seen
    assert "longvision::mixer" in [event.name for event in profile.events()]


@mixer_and_block
def test_fake_tensors_stay_fake(maker):
    case = maker(2, 65, dtype=torch.float32)
    with FakeTensorMode() as mode:
        fake = case.changed(mode.from_tensor)
        inside = fake.call()
    outside = fake.call()  # a fake tensor carries its mode
    assert inside.shape == outside.shape == case.x.shape
    assert type(inside) is type(outside) is type(fake.x)


@mixer_and_block
def test_a_lazy_negation_is_made_first(maker):
    case = maker(2, 65, dtype=torch.float32)
    lazy = torch.complex(torch.zeros_like(case.x), -case.x).conj().imag
    assert lazy.is_neg()
    assert torch.equal(case._replace(x=lazy).call(), case.call())


@mixer_and_block
def test_a_tensor_of_no_memory(maker):
    """Zeros that torch has not written: as they are there would be no address to read at."""
    case = maker(2, 65, dtype=torch.float32)
    zeros = torch._efficientzerotensor(tuple(case.x.shape))
    assert torch.equal(case._replace(x=zeros).call(), case._replace(x=torch.zeros_like(case.x)).call())


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


@pytest.mark.parametrize("op", ["mixer", "selective_scan"])
def test_a_backward_of_what_saved_nothing(op):
    """As in a graph that was exported under no_grad, and then is called with gradients."""
    case = make_block(1, 65, dtype=torch.float32)
    x = case.x.requires_grad_()
    A, B = -torch.ones(CHANNELS, 2), torch.ones(1, 65, 2)
    of_scan = x, x, A, B, B, *[None] * 5, False, False, None, "cpu", False, False
    y, *_ = getattr(torch.ops.longvision, op)(*(of_scan if op != "mixer" else case.of_the_op(save_for_backward=False)))
    with pytest.raises(RuntimeError, match=f"^{op} saved nothing"):
        y.sum().backward()
