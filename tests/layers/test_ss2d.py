"""VMamba's mixer and its layers on maps, against the equations pixel by pixel; float64."""

import pytest
import torch
import torch.nn.functional as F

from longvision.layers.maps import MapConv2d, PatchMerging
from longvision.layers.plain import set_fused
from longvision.layers.ss2d import SS2D

GRIDS = [(1, 1), (1, 7), (5, 3), (4, 4)]


def scattered(module):
    """Weights away from their defaults."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def orders(rows, columns):
    """The pixels in the four directions."""
    by_row = [row * columns + column for row in range(rows) for column in range(columns)]
    by_column = [row * columns + column for column in range(columns) for row in range(rows)]
    return by_row, by_column, by_row[::-1], by_column[::-1]


def by_the_equations(mixer, x_BHWD):
    """FACTS: one pixel after the other, a state a channel and direction."""
    batch, rows, columns, _ = x_BHWD.shape
    x = x_BHWD @ mixer.in_proj.weight.T
    x, z = x.chunk(2, -1) if mixer.gated else (x, None)
    bias = mixer.conv2d.bias
    u = F.silu(F.conv2d(x.movedim(3, 1), mixer.conv2d.weight, bias, padding=1, groups=mixer.inner)).flatten(2).mT
    y = torch.zeros_like(u)
    for k, order in enumerate(orders(rows, columns)):
        low, B, C = (u @ mixer.x_proj_weight[k].T).split([mixer.rank, mixer.state, mixer.state], -1)
        dt = F.softplus(low @ mixer.dt_projs_weight[k].T + mixer.dt_projs_bias[k])
        A = -mixer.A_logs.unflatten(0, (4, -1))[k].exp()
        D = mixer.Ds.unflatten(0, (4, -1))[k]
        h = u.new_zeros(batch, mixer.inner, mixer.state)
        for pixel in order:
            step = dt[:, pixel, :, None]
            h = (step * A).exp() * h + step * B[:, pixel, None] * u[:, pixel, :, None]
            y = y.index_add(1, torch.tensor([pixel]), ((h * C[:, pixel, None]).sum(-1) + D * u[:, pixel])[:, None])
    y = F.layer_norm(y, y.shape[-1:], mixer.out_norm.weight, mixer.out_norm.bias, 1e-5)
    y = y if z is None else y * F.silu(z.flatten(1, 2))
    return (y @ mixer.out_proj.weight.T).unflatten(1, (rows, columns))


def gradients(output, chosen, tensors):
    return torch.autograd.grad((output * chosen).sum(), tensors)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("state, gated", [(1, False), (3, True)])
def test_the_equations(grid, state, gated):
    """Values and gradients, by the ops and in plain torch."""
    mixer = scattered(SS2D(6, 10, state, gated))
    x_BHWD = torch.randn(2, *grid, 6, dtype=torch.float64, requires_grad=True)
    truth, chosen, tensors = by_the_equations(mixer, x_BHWD), torch.randn_like(x_BHWD), [x_BHWD, *mixer.parameters()]
    expected = gradients(truth, chosen, tensors)
    for fused in (True, False):
        set_fused(mixer, fused)
        output = mixer(x_BHWD)
        torch.testing.assert_close(output, truth, rtol=1e-9, atol=1e-11)
        for got, right in zip(gradients(output, chosen, tensors), expected, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_strides_of_the_map_do_not_matter():
    """A map whose channels are not last in memory."""
    mixer = scattered(SS2D(6, 6))
    x_BHWD = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    turned = x_BHWD.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(turned), mixer(x_BHWD), rtol=1e-11, atol=1e-12)


def test_initialisation():
    """Mamba's in each direction: steps log-uniform from 0.001 to 0.1, A = -1 … -N, D = 1."""
    mixer = SS2D(64, 256, 4)
    steps = F.softplus(mixer.dt_projs_bias)
    assert mixer.dt_projs_bias.shape == (4, 256) and 0.001 <= steps.min() < 0.002 and 0.05 < steps.max() <= 0.1001
    assert (steps.log().mean(1) + 4.6).abs().max() < 0.3  # of log-uniform: log(0.01)
    torch.testing.assert_close(mixer.A_logs.exp(), torch.arange(1.0, 5).expand(1024, 4))
    assert (mixer.Ds == 1).all()
    assert mixer.dt_projs_weight.shape == (4, 256, 4) and 0.49 < mixer.dt_projs_weight.abs().max() <= 0.5
    assert 0.061 < mixer.x_proj_weight.abs().max() <= 1 / 16  # as nn.Linear of 256


@torch.no_grad()
def test_convolution_with_channels_last():
    convolution = MapConv2d(4, 8, 3, 2, 1)
    x_BHWC = torch.randn(2, 7, 6, 4)
    truth = F.conv2d(x_BHWC.movedim(3, 1), convolution.weight, convolution.bias, 2, 1).movedim(1, 3)
    y_BHWD = convolution(x_BHWC)
    torch.testing.assert_close(y_BHWD, truth)
    assert y_BHWD.is_contiguous() and y_BHWD.shape == (2, 4, 3, 8)


@torch.no_grad()
def test_merging_patches_of_odd_sides():
    merging, x_BHWD = scattered(PatchMerging(2)), torch.randn(1, 3, 5, 2, dtype=torch.float64)
    y_BHWD, padded = merging(x_BHWD), F.pad(x_BHWD, (0, 0, 0, 1, 0, 1))
    assert y_BHWD.shape == (1, 2, 3, 4)
    for row in range(2):
        for column in range(3):
            at = [(0, 0), (1, 0), (0, 1), (1, 1)]  # row and column of the four pixels, in this order
            cell = torch.cat([padded[0, 2 * row + i, 2 * column + j] for i, j in at])
            truth = F.layer_norm(cell, (8,), merging.norm.weight, merging.norm.bias) @ merging.reduction.weight.T
            torch.testing.assert_close(y_BHWD[0, row, column], truth)
