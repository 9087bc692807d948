"""Training in bfloat16 and float16 against float32; the places where half precision overflows or loses digits."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from longvision.models import Vim
from longvision.ops import ScanDirection, mixer, selective_scan
from longvision.ops.common import choose_backend

HALVES = (torch.bfloat16, torch.float16)
HALF_BACKENDS = [("cpu", torch.bfloat16), *((name, dtype) for name in ("chunked", "triton") for dtype in HALVES)]
SPACING = {torch.bfloat16: 2**-5, torch.float16: 2**-8}  # of the numbers from 4 to 8


# Training

STEPS, WINDOW = 120, 20  # losses are averaged over so many steps


class Curve(NamedTuple):
    losses: torch.Tensor
    skipped: list[int]  # steps at which the loss scaling found an overflow
    nonfinite: list[int]  # steps with a gradient that is not finite

    def smooth(self):
        return self.losses.view(-1, WINDOW).mean(1)


def digits():
    """scikit-learn's scans with a row and a column of zeros, (N, 1, 9, 9), and their labels."""
    scans = pytest.importorskip("sklearn.datasets").load_digits()
    images = F.pad(torch.tensor(scans.images, dtype=torch.float32)[:, None], (0, 1, 0, 1))
    return (images - images.mean()) / images.std(), torch.tensor(scans.target)


def train(dtype=None, order=0):
    """12 blocks, always from the same weights, the images in the order of that number; in autocast to `dtype`."""
    from longvision.tasks.config import OptimConfig
    from longvision.tasks.optim import make_optimizer

    images, labels = digits()
    torch.manual_seed(0)
    model = Vim(img_size=9, patch_size=3, in_chans=1, num_classes=10, embed_dim=32, depth=12, state=4)
    # The paper's weight decay; twice its learning rate, for a third of the steps.
    config = OptimConfig(lr=2e-3, weight_decay=0.1, schedule="cosine", final_lr=0.01)
    chosen = make_optimizer(model, config, warmup=5, steps=STEPS)
    optimizer, schedule = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    for group in optimizer.param_groups:
        group["fused"] = True  # the same steps in a fifth of the time
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    generator = torch.Generator().manual_seed(order)
    losses, skipped, nonfinite = [], [], []
    for step in range(STEPS):
        batch = torch.randint(len(images), (32,), generator=generator)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if not torch.cat([p.grad.flatten() for p in model.parameters()]).isfinite().all():
            nonfinite.append(step)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < before:
            skipped.append(step)
        schedule.step()
        losses.append(loss.item())
    return Curve(torch.tensor(losses), skipped, nonfinite)


@pytest.fixture(scope="module")
def float32_curve():
    return train()


@pytest.fixture(scope="module")
def noise(float32_curve):
    """How far two runs in float32 are apart that see the same images in another order, on the average of the curve and
    where they are farthest apart."""
    return distances(train(order=1), float32_curve)


def distances(one, other):
    apart = (one.smooth() - other.smooth()).abs()
    return apart.mean(), apart.max()


@pytest.mark.slow
def test_the_noise_is_small_beside_what_is_learned(float32_curve, noise):
    first, *_, last = float32_curve.smooth()
    assert last < 0.25 * first
    assert noise[1] < 0.1 * (first - last)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_run_is_that_of_float32_but_for_noise(float32_curve, noise, dtype):
    """With the same images in the same order."""
    curve = train(dtype)
    assert curve.nonfinite == curve.skipped
    # The scaling begins at 65,536 and is halved where a gradient becomes larger than float16 holds.
    assert len(curve.skipped) <= (4 if dtype == torch.float16 else 0)
    assert not curve.skipped or max(curve.skipped) < 0.75 * STEPS
    mean, largest = distances(curve, float32_curve)
    assert mean <= noise[0] and largest <= noise[1]


# Overflows and lost digits

ROUNDINGS = 4 * 2**-11  # some, to float16


class Mixer(NamedTuple):
    """What `mixer` takes; x and z are side by side, and the projections hand on what they get."""

    xz: torch.Tensor
    directions: list[ScanDirection]

    def tensors(self):
        named = {
            f"{name} of direction {i}": t
            for i, direction in enumerate(self.directions)
            for name, t in zip(ScanDirection._fields, direction.tensors())
        }
        return {"xz": self.xz, **named}

    def changed(self, function):
        directions = [ScanDirection(*map(function, own.tensors()), own.reverse) for own in self.directions]
        return Mixer(function(self.xz), directions)

    def output(self):
        width = self.xz.shape[-1] // 2
        like = {"dtype": self.xz.dtype, "device": self.xz.device}
        return mixer(self.xz, self.directions, torch.eye(2 * width, **like), torch.eye(width, **like))

    def gradients(self, grad):
        """-> the output, and the gradient of each tensor."""
        leaves = self.changed(lambda t: t.detach().clone().requires_grad_())
        y = leaves.output()
        y.backward(grad.to(y.dtype).to(y.device))
        return {"y": y.detach().cpu(), **{name: t.grad.cpu() for name, t in leaves.tensors().items()}}


def case_of(x, z, ways, **values):
    """Rank, states and taps 1; a value is one number for all, or the tensor. The filter hands x on."""
    width = x.shape[-1]
    shapes = {
        "filter_EK": (width, 1),
        "filter_bias_E": (width,),
        "x_proj_PE": (3, width),
        "dt_proj_ER": (width, 1),
        "dt_bias_E": (width,),
        "A_log_EN": (width, 1),
        "D_E": (width,),
    }
    defaults = {"filter_EK": 1.0, "A_log_EN": 0.0}

    def tensor(name):
        value = torch.as_tensor(values.get(name, defaults.get(name, 0.0)), dtype=torch.float64)
        return value.expand(shapes[name]).clone()

    directions = [ScanDirection(*map(tensor, shapes), way) for way in ways]
    return Mixer(torch.cat((x, z), -1), directions)


@pytest.fixture
def on(monkeypatch):
    """Chooses the backend; -> what brings a tensor to where it computes. Triton without a GPU is interpreted."""

    def choose(backend, dtype):
        monkeypatch.setenv("LONGVISION_SCAN_BACKEND", backend)
        device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
        try:
            choose_backend(None, device, dtype)
        except ValueError as error:
            pytest.skip(str(error))
        return lambda tensor: tensor.to(device, dtype)

    return choose


def truth(case, dtype, grad, monkeypatch):
    """In float64, from the numbers that `dtype` has."""
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", "reference")
    return case.changed(lambda t: t.to(dtype).double()).gradients(grad)


def assert_near(got, expected, tolerance):
    for name, tensor in expected.items():
        assert torch.isfinite(got[name]).all(), name
        assert (got[name].double() - tensor).norm() <= tolerance * tensor.norm(), name


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_the_mean_of_directions_whose_sum_overflows(on, monkeypatch, backend):
    """Each gives 60,000, the sum is beyond float16's 65,504."""
    z = torch.linspace(-10, -8, 24, dtype=torch.float64).view(1, 3, 8)  # SiLU takes 60,000 to 3 to 30
    case = case_of(torch.zeros_like(z), z, (False, True), filter_bias_E=250.0, D_E=240.0)
    grad = torch.ones_like(z)
    expected = truth(case, torch.float16, grad, monkeypatch)
    got = case.changed(on(backend, torch.float16)).gradients(grad)
    assert_near(got, expected, ROUNDINGS)


# Added in half precision, a step of 0.3 spacings is lost beside a bias of -6.875, and with it as large a part of the
# output: softplus is the exponential there. The mean of 128 outputs has a tenth of that in roundings.
LOST = 0.3


def growth(y, without):
    return (y.double() / without.double() - 1).mean().item()


@pytest.mark.parametrize("backend, dtype", HALF_BACKENDS, ids=str)
def test_the_bias_of_the_mixer_s_step(on, monkeypatch, backend, dtype):
    x, z = 1 + torch.rand(2, 2, 8, 8, dtype=torch.float64)
    x_proj = torch.tensor([0.25 * SPACING[dtype], 1.0, 1.0], dtype=torch.float64)[:, None] / 8  # u is 1.2 on average
    case, without = (
        case_of(x, z, (False, True), x_proj_PE=x_proj.expand(3, 8), dt_proj_ER=weight, dt_bias_E=-6.875)
        for weight in (1.0, 0.0)
    )
    place = on(backend, dtype)
    got = growth(case.changed(place).output(), without.changed(place).output())
    expected = growth(*(truth(each, dtype, torch.ones_like(x), monkeypatch)["y"] for each in (case, without)))
    assert abs(got - expected) < LOST * SPACING[dtype] / 2


@pytest.mark.parametrize("backend, dtype", [*HALF_BACKENDS, *(("reference", dtype) for dtype in HALVES)], ids=str)
def test_the_bias_of_the_scan_s_step(on, backend, dtype):
    place = on(backend, dtype)
    x, B, C = (place(1 + torch.rand(2, 8, width)) for width in (8, 1, 1))
    A, bias = place(-torch.ones(8, 1)), place(torch.full((8,), -6.875))

    def scan(step):
        delta = torch.full_like(x, step)
        return selective_scan(x, delta, A, B, C, delta_bias_E=bias, delta_softplus=True, backend=backend)

    step = LOST * SPACING[dtype]
    assert abs(growth(scan(step), scan(0.0)) - step) < step / 2


@pytest.mark.parametrize("backend", ["chunked", "triton"])
def test_gradients_of_B_and_C_beyond_half_precision(on, monkeypatch, backend):
    """That of C is a sum over 8 channels of 85,000, while what is returned is below float16's 65,504."""
    x = 0.4 + 0.02 * torch.rand(1, 2, 8, dtype=torch.float64)  # u is 0.25
    x_proj = torch.tensor([0.0, 1.0, 0.05], dtype=torch.float64)[:, None].expand(3, 8)
    case = case_of(x, torch.ones_like(x), (False,), x_proj_PE=x_proj, dt_bias_E=1.0, dt_proj_ER=0.1)
    grad = torch.full_like(x, 20_000.0)
    expected = truth(case, torch.float16, grad, monkeypatch)
    got = case.changed(on(backend, torch.float16)).gradients(grad)
    assert_near(got, expected, ROUNDINGS)
