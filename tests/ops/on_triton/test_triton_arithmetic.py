"""What the kernels compute with, each in a kernel of its own, against float64."""

import pytest
import torch

triton = pytest.importorskip("triton")
pytest.importorskip("triton.language")

import triton.language as tl  # noqa: E402

from longvision.ops.kernels.triton.arithmetic import (  # noqa: E402
    lane_sums,
    load_pair,
    matmul,
    sigmoid,
    slope_of_softplus,
    softplus,
)
from longvision.ops.kernels.triton.launch import launch  # noqa: E402

pytestmark = pytest.mark.usefixtures("poison")

BLOCK = 1024


@triton.jit
def of_each(x, y, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i)
    if FUNCTION == "sigmoid":
        value = sigmoid(value)
    if FUNCTION == "softplus":
        value = softplus(value)
    if FUNCTION == "slope_of_softplus":
        value = slope_of_softplus(value)
    tl.store(y + i, value)


@triton.jit
def pairs(x, first, second, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = load_pair(x + i)
    tl.store(first + i, a)
    tl.store(second + i, b)


@triton.jit
def sums(x, y, COUNT: tl.constexpr, CHANNELS: tl.constexpr):
    e = tl.arange(0, CHANNELS)
    values = ()
    for i in tl.static_range(COUNT):
        values = values + (tl.load(x + i * CHANNELS + e),)  # noqa: RUF005  # Triton unpacks no tuples
    tl.store(y + tl.arange(0, COUNT), lane_sums(values, COUNT))


@triton.jit
def matmuls(left, right, total, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    place = i[:, None] * SIZE + i[None, :]
    tl.store(total + place, matmul(tl.load(left + place), tl.load(right + place), tl.load(total + place)))


def applied(function, x, device):
    padded = torch.zeros(-(-len(x) // BLOCK) * BLOCK)
    padded[: len(x)] = x
    padded = padded.to(device)
    y = torch.empty_like(padded)
    launch(of_each, (len(padded) // BLOCK,), padded, y, FUNCTION=function, BLOCK=BLOCK)
    return y[: len(x)].cpu().double()


# A float32 has 1.2e-38 at least before it loses digits: exp(-87).
GRID = torch.cat([
    torch.linspace(-87, 100, 5000),
    torch.linspace(-2, 2, 2001),
    *(sign * torch.logspace(-30, 0, 61) for sign in (1, -1)),
    torch.tensor([0.0, -0.0]),
])  # fmt: skip


def assert_relative(got, truth, tolerance):
    error = (got - truth).abs() / truth.abs().clamp(min=1e-300)
    assert (error <= tolerance).all(), f"{(error / tolerance).max():.1e} times as far as allowed"


# A few roundings of 6e-8. Where the result is as small as exp(-|x|), also that of the argument of exp2.
def tolerance_at(x):
    return 3e-7 + 1e-7 * (-x).clamp(min=0)


def test_sigmoid(device):
    x = GRID.double()
    assert_relative(applied("sigmoid", GRID, device), 1 / (1 + torch.exp(-x)), tolerance_at(x))


def test_softplus(device):
    x = GRID.double()
    truth = torch.exp(-x.abs()).log1p() + x.clamp(min=0)
    assert_relative(applied("softplus", GRID, device), truth, tolerance_at(x))


@pytest.mark.parametrize("function, at_most", [("sigmoid", 1.0), ("softplus", 100.0)])
def test_far_away_nothing_overflows(device, function, at_most):
    x = torch.tensor([-torch.inf, -1e30, -200.0, -100.0, 100.0])
    got = applied(function, x, device)
    assert (got[:3] == 0).all() and 0 <= got[3] < 1e-40 and got[4] == at_most


@pytest.mark.parametrize("function", ["sigmoid", "softplus"])
def test_not_a_number_is_not_hidden(device, function):
    assert applied(function, torch.tensor([torch.nan]), device).isnan().all()


def test_slope_of_softplus(device):
    y = torch.cat([torch.logspace(-37, 2, 3000), torch.linspace(0.6, 0.8, 2001), torch.zeros(1)])
    assert_relative(applied("slope_of_softplus", y, device), -torch.expm1(-y.double()), 3e-7)


def test_load_pair(device):
    """Bits as they are: signs, what is not normal, what is no number."""
    x = torch.tensor([[1.0, -2.0], [-0.0, 1e-42], [torch.inf, -torch.inf], [torch.nan, 3.4e38]], device=device)
    first, second = torch.empty(4, device=device), torch.empty(4, device=device)
    launch(pairs, (1,), x.view(torch.int64), first, second, BLOCK=4)
    got = torch.stack([first, second], 1)
    assert torch.equal(got.view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("channels", [32, 64, 128])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_lane_sums(device, count, channels):
    x = torch.randn(count, channels, dtype=torch.float64).float()
    y = torch.empty(count, device=device)
    launch(sums, (1,), x.to(device), y, COUNT=count, CHANNELS=channels)
    error = (y.cpu().double() - x.double().sum(1)).abs().max()
    assert error <= 3e-7 * x.abs().sum(1).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matmul(device, dtype):
    """Sums are float32, and no factor loses a digit."""
    left, right, total = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype), torch.randn(16, 16)
    truth = total.double() + left.double() @ right.double()
    there = total.to(device)
    launch(matmuls, (1,), left.to(device), right.to(device), there, warps=4, SIZE=16)
    assert ((there.cpu().double() - truth).norm() / truth.norm()) <= 3e-7
