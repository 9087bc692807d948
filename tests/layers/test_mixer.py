"""The mixer's directions, its parameters and its initialisation."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from longvision.errors import UserError
from longvision.layers import VimMixer
from longvision.layers.mixer import DIRECTIONS

ONE_WAY = ("none", "sequence", "layer")


def mixer_of(direction, reverse=False, dim=16, **options):
    """In float64, with parameters that no two directions share by chance."""
    mixer = VimMixer(dim, direction=direction, reverse=reverse, **options).double()
    for name, parameter in mixer.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "log" not in name else 0.3)
    return mixer


def assert_same(got, truth):
    """Two orders of summation in float64: some roundings of 1e-16 of the largest value."""
    torch.testing.assert_close(got, truth, rtol=0, atol=1e-13 * truth.abs().max().item())


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 37])
def test_keeps_the_shape(direction, tokens):
    x = torch.randn(2, tokens, 16, dtype=torch.float64)
    y = mixer_of(direction)(x)
    assert y.shape == x.shape and torch.isfinite(y).all()


def test_parameters_of_each_direction():
    own = {"in_proj.weight", "out_proj.weight", "A_log", "D", "x_proj.weight", "dt_proj.weight", "dt_proj.bias",
           "conv1d.weight", "conv1d.bias"}  # fmt: skip
    backward = {"A_b_log", "D_b", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias", "conv1d_b.weight",
                "conv1d_b.bias"}  # fmt: skip
    for direction in DIRECTIONS:
        names = {name for name, _ in VimMixer(16, direction=direction).named_parameters()}
        extra = {"ssm_conv": backward, "ssm": {"A_b_log"}}.get(direction, set())
        assert names == own | extra, direction


@pytest.mark.parametrize("state, dim, rank", [(16, 192, 12), (4, 20, 2), (8, 16, 1)])
def test_shapes(state, dim, rank):
    shapes = {name: tuple(p.shape) for name, p in VimMixer(dim, state, "ssm_conv").named_parameters()}
    inner = 2 * dim
    assert shapes["in_proj.weight"] == (2 * inner, dim) and shapes["out_proj.weight"] == (dim, inner)
    for end in ("", "_b"):
        assert shapes[f"conv1d{end}.weight"] == (inner, 1, 4) and shapes[f"x_proj{end}.weight"] == (
            rank + 2 * state,
            inner,
        )
        assert shapes[f"dt_proj{end}.weight"] == (inner, rank) and shapes[f"A{end}_log"] == (inner, state)


@pytest.mark.parametrize("direction", ONE_WAY)
def test_reverse_is_flipped_forward(direction):
    forth, back = mixer_of(direction), mixer_of(direction, reverse=True)
    back.load_state_dict(forth.state_dict())
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    assert_same(back(x), forth(x.flip(1)).flip(1))
    assert not torch.allclose(back(x), forth(x))


@pytest.mark.parametrize("direction", ["ssm", "ssm_conv"])
def test_two_directions_are_the_mean_of_one_forth_and_one_back(direction):
    """A mixer of both directions equals half of two mixers of one, with the parameters of the direction each."""
    both = mixer_of(direction)
    forth, back = mixer_of("none"), mixer_of("none", reverse=True)
    weights = both.state_dict()
    forth.load_state_dict({name: weights[name] for name in forth.state_dict()})

    def of_the_backward(name):
        stem, _, rest = name.partition(".")
        stem = {"A_log": "A_b_log"}.get(stem, f"{stem}_b" if direction == "ssm_conv" else stem)
        candidate = f"{stem}.{rest}" if rest else stem
        return candidate if candidate in weights else name  # the projections in and out belong to neither

    back.load_state_dict({name: weights[of_the_backward(name)] for name in back.state_dict()})
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    assert_same(both(x), (forth(x) + back(x)) / 2)
    assert not torch.allclose(forth(x), back(x))


def test_ssm_shares_all_but_the_decay():
    """With equal decay rates, "ssm" takes a palindrome to a palindrome."""
    mixer = mixer_of("ssm")
    half = torch.randn(1, 8, 16, dtype=torch.float64)
    palindrome = torch.cat([half, half.flip(1)], 1)
    assert not torch.allclose(mixer(palindrome), mixer(palindrome).flip(1))
    mixer.A_b_log.data.copy_(mixer.A_log.data)
    assert_same(mixer(palindrome), mixer(palindrome).flip(1))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_packed_is_one_after_the_other(direction):
    mixer, x = mixer_of(direction), torch.randn(1, 30, 16, dtype=torch.float64)
    boundaries = [0, 1, 4, 20, 30]
    packed = mixer(x, torch.tensor(boundaries))
    separate = torch.cat([mixer(x[:, a:b]) for a, b in pairwise(boundaries)], 1)
    assert_same(packed, separate)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_parameter_gets_a_gradient(direction):
    mixer = mixer_of(direction)
    mixer(torch.randn(2, 9, 16, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in mixer.parameters())


def test_initialisation():
    """Decay rates -1 ... -N, D one, steps log-uniform from 0.001 to 0.1, low-rank weights within 1/sqrt(rank)."""
    mixer = VimMixer(192)
    for end in ("", "_b"):
        decay = getattr(mixer, f"A{end}_log").exp()
        torch.testing.assert_close(decay, torch.arange(1.0, 17).expand(384, 16))  # exp of log, to float32's rounding
        assert (getattr(mixer, f"D{end}") == 1).all()
        projection = getattr(mixer, f"dt_proj{end}")
        step = F.softplus(projection.bias.double()).log10()
        assert step.min() >= -3.001 and step.max() <= -0.999  # float32's rounding of the bounds
        # 384 samples uniform in [-3, -1]: the mean's standard deviation is 0.03, the median's 0.05
        assert abs(step.mean() + 2) < 0.15 and abs(step.median() + 2) < 0.25
        bound = 12**-0.5
        assert 0.95 * bound < projection.weight.abs().max() <= bound
    assert mixer.rank == math.ceil(192 / 16)


def test_half_precision_mean_does_not_overflow():
    """Each direction gives 40,000; their sum is beyond float16's 65,504, their mean is not."""
    mixer = VimMixer(4, state=1).half()
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            parameter.zero_()
            if (name.startswith("conv1d") and name.endswith("bias")) or name in ("D", "D_b"):
                parameter.fill_(200)
        mixer.in_proj.weight[8:12].copy_(torch.eye(4))  # x = 0; the gate is SiLU of the input
        mixer.out_proj.weight[:, :4].copy_(torch.eye(4))
    gate = torch.full((1, 3, 4), -10.0, dtype=torch.float16)  # SiLU(-10) is -0.00045
    y = mixer(gate)
    assert torch.isfinite(y).all()
    truth = 40_000 * F.silu(torch.tensor(-10.0, dtype=torch.float64))
    # three roundings to float16, the first of a number near 5e-4 whose neighbours are 5e-7 apart
    torch.testing.assert_close(y.double(), truth.expand(1, 3, 4), rtol=3e-3, atol=0)


def test_unknown_direction_names_the_known():
    with pytest.raises(
        UserError, match="direction='both' is unknown: choose one of none, sequence, layer, ssm, ssm_conv"
    ):
        VimMixer(16, direction="both")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_every_backend_of_the_scan_gives_the_same(monkeypatch, direction, backend):
    mixer, x = mixer_of(direction), torch.randn(2, 37, 16, dtype=torch.float64, requires_grad=True)

    def value_and_grads():
        y = mixer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])]

    own = value_and_grads()
    monkeypatch.setenv("LONGVISION_SCAN_BACKEND", backend)
    for a, b in zip(own, value_and_grads()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * b.abs().max().item())  # float64, sums that cancel


@pytest.mark.parametrize("trained", ["out_proj.weight", "in_proj.weight", "A_log", "x_proj_b.weight", "conv1d.bias"])
def test_all_but_one_parameter_frozen(trained):
    mixer, x = mixer_of("ssm_conv"), torch.randn(2, 9, 16, dtype=torch.float64)
    mixer(x).square().sum().backward()
    expected = mixer.get_parameter(trained).grad.clone()
    mixer.zero_grad()
    for name, parameter in mixer.named_parameters():
        parameter.requires_grad_(name == trained)
    mixer(x).square().sum().backward()
    assert_same(mixer.get_parameter(trained).grad, expected)


def test_on_the_meta_device():
    """Shapes without numbers, as large models are built and measured."""
    with torch.device("meta"):
        mixer = VimMixer(16)
        x = torch.randn(2, 9, 16, requires_grad=True)
    y = mixer(x)
    y.sum().backward()
    assert (y.shape, y.device.type, x.grad.shape) == (x.shape, "meta", x.shape)


def test_autocast_leaves_float64_alone():
    """As torch's own layers do."""
    mixer, x = mixer_of("ssm_conv"), torch.randn(2, 9, 16, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    assert y.dtype == torch.float64
    assert_same(y, mixer(x))
