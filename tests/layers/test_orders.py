"""Orders in which scans read patches, and the mixer that scans in them."""

import copy

import pytest
import torch
import torch.nn.functional as F

from longvision.layers.ordered_mixer import ChannelGate, OrderedMixer, Scan
from longvision.layers.orders import in_order, in_orders, put_back, scan_orders
from longvision.layers.plain import set_fused
from longvision.ops.selective_scan.reference import selective_scan_reference

CPU = torch.device("cpu")


def read(name, grid, token=None):
    """Which token stands at each place of the scan's sequence; -1 where there is none."""
    tokens = grid[0] * grid[1] + (token is not None)
    order = scan_orders([name], grid, token, CPU)[name]
    numbers = torch.arange(1.0, tokens + 1)[None, :, None]
    return (in_order(numbers, order)[0, :, 0] - 1).int().tolist()


@pytest.mark.parametrize(
    "name, grid, token, expected",
    [
        ("v", (2, 3), None, [0, 3, 1, 4, 2, 5]),
        ("v", (2, 3), 3, [0, 4, 1, 3, 5, 2, 6]),  # token 3 stays; 4 and 5 begin the second row
        ("w2", (2, 4), None, [0, 1, 4, 5, 2, 3, 6, 7]),
        ("w2", (3, 3), None, [0, 1, 3, 4, 2, -1, 5, -1, 6, 7, -1, -1, 8, -1, -1, -1]),
        ("w2", (1, 3), 1, [0, 1, 2, -1, -1, 3, -1, -1, -1]),
        ("w7", (1, 2), None, [0, 1, *[-1] * 47]),
        ("w1", (2, 2), None, [0, 1, 2, 3]),
        ("vf", (2, 2), 2, [0, 3, 2, 1, 4]),  # as "v": the class token is in the middle
        ("vf", (1, 3), 1, [0, 2, 1, 3]),  # read from its end it has one token before it, as in "v"
        ("hf", (1, 3), 1, [0, 2, 1, 3]),
    ],
    ids=str,
)
def test_orders(name, grid, token, expected):
    assert read(name, grid, token) == expected


def test_rows_are_left_where_they_are():
    assert scan_orders(["h", "hf"], (2, 3), 3, CPU) == {"h": None, "hf": None}


def test_equal_orders_are_one_tensor():
    x = torch.randn(1, 13, 4)
    moved = in_orders(x, scan_orders(["h", "hf", "v", "vf", "w2f"], (3, 4), 6, CPU), ["vf", "v", "hf", "w2f"])
    assert moved["v"] is moved["vf"] and moved["hf"] is x and moved["w2f"].shape == (1, 17, 4)


@pytest.mark.parametrize("name", ["v", "w2", "w3"])
def test_each_token_comes_back_and_gradients_with_it(name):
    order = scan_orders([name], (3, 5), 7, CPU)[name]
    x = torch.randn(2, 16, 4, dtype=torch.float64, requires_grad=True)
    y = put_back(in_order(x, order), order)
    assert torch.equal(y, x)
    chosen = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad((y * chosen).sum(), x)[0], chosen)
    if order.length > 16:
        assert torch.autograd.gradcheck(lambda x: in_order(x, order), x)
        assert torch.autograd.gradcheck(lambda y: put_back(y, order), in_order(x.detach(), order).requires_grad_())


def branch_by_the_equations(xz, own):
    """Of FACTS: convolution, SiLU, step, B and C, scan, gate; float64, one token after the other."""
    x, z = xz.chunk(2, -1)
    taps = own.filter_EK.shape[-1]
    x = F.conv1d(F.pad(x.mT, (taps - 1, 0)), own.filter_EK, own.filter_bias_E, groups=x.shape[-1]).mT
    x = F.silu(x)
    rank, state = own.dt_proj_ER.shape[1], own.A_log_EN.shape[1]
    low, B, C = (x @ own.x_proj_PE.T).split([rank, state, state], -1)
    step = low @ own.dt_proj_ER.T
    y = selective_scan_reference(x, step, -own.A_log_EN.exp(), B, C, own.D_E, z, own.dt_bias_E, True)
    return y


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weighed", [False, True])
def test_the_mixer_by_the_equations(weighed, fused):
    """Values and every gradient: x and z moved as the authors move them, padded with zeros; float64."""
    words = ["h", "vf", "w2", "w2f"]
    scans = [Scan(word, word.endswith("f"), f"_{i}", f"A_{i}") for i, word in enumerate(words)]
    mixer = OrderedMixer(8, 16, scans, 4, ChannelGate if weighed else None).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    set_fused(mixer, fused)
    grid, x = (3, 5), torch.randn(2, 15, 8, dtype=torch.float64, requires_grad=True)
    orders = scan_orders(words, grid, None, CPU)
    total = 0
    for scan in scans:
        xz, order = mixer.in_proj(x), orders[scan.order]
        xz = xz if order is None else in_order(xz, order)
        y = branch_by_the_equations(xz.flip(1) if scan.reverse else xz, mixer._branch(scan).scan_direction())
        y = put_back(y.flip(1) if scan.reverse else y, order)
        if weighed:
            mean = F.layer_norm(y, (16,), mixer.attn.norm.weight, mixer.attn.norm.bias, 1e-5).mean(1, keepdim=True)
            y = y * mixer.attn.channel_select(F.gelu(mixer.attn.global_reduce(mean))).sigmoid()
        total = total + y
    truth = mixer.out_proj(total if weighed else total / 4)
    got, chosen = mixer(x, orders), torch.randn_like(truth)
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-11)
    given = [x, *mixer.parameters()]
    found, expected = (torch.autograd.grad((out * chosen).sum(), given) for out in (got, truth))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_hooks_and_adapters_are_called():
    scans = [Scan("h", False, "", "A_log"), Scan("v", True, "_c", "A_c_log")]
    mixer, x = OrderedMixer(8, 8, scans, 4), torch.randn(1, 6, 8)
    orders, seen = scan_orders(["h", "v"], (2, 3), None, CPU), []
    truth = mixer(x, orders)
    other = copy.deepcopy(mixer)
    for name in ("in_proj", "conv1d_c", "x_proj_c", "dt_proj", "out_proj"):
        getattr(other, name).register_forward_hook(lambda *_, name=name: seen.append(name))
    torch.testing.assert_close(other(x, orders), truth)
    assert sorted(seen) == ["conv1d_c", "dt_proj", "in_proj", "out_proj", "x_proj_c"]
    other.conv1d_c.padding = (1,)
    with pytest.raises(ValueError, match="conv1d_c has padding"):
        other(x, orders)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    scans = [Scan("h", False, "", "A_log"), Scan("v", True, "_c", "A_c_log")]
    mixer, x = OrderedMixer(16, 16, scans, attn=ChannelGate), torch.randn(2, 12, 16)
    orders = scan_orders(["h", "v"], (3, 4), None, CPU)
    truth = mixer(x, orders)
    with torch.autocast("cpu", dtype):
        out = mixer(x, orders)
    assert out.dtype == dtype and F.cosine_similarity(out.float().flatten(), truth.flatten(), dim=0) > 0.999
    half = mixer.to(dtype)(x.to(dtype), orders)
    assert half.dtype == dtype and F.cosine_similarity(half.float().flatten(), truth.flatten(), dim=0) > 0.999
