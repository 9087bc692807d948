"""A selective-scan mixer whose branches read the tokens in orders of their own."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.layers.attention import LayerNorm
from longvision.layers.mixer import Branch, own_parameters
from longvision.layers.orders import Orders, in_orders, put_back
from longvision.layers.plain import as_call, check_filter
from longvision.layers.scan_init import init_scan

# They look at sizes that a symbolic trace does not know: it records the calls.
torch.fx.wrap("in_orders")
torch.fx.wrap("put_back")

PARTS = "conv1d", "x_proj", "dt_proj", "D"


class Scan(NamedTuple):
    """A branch of an `OrderedMixer`.

    Args:
        order: in which it reads the tokens; see `longvision.layers.orders.scan_orders`.
        reverse: from the last of these to the first.
        suffix: behind the names of its parameters.
        decay: the name of its decay rates.
    """

    order: str
    reverse: bool
    suffix: str
    decay: str


class OrderedMixer(nn.Module):
    """(B, M, D) -> (B, M, D). Branches of convolution and selective scan between an input and an output projection.

    The mean of the branches, each token back in its place, is gated by SiLU(z) and projected. With `attn` each branch
    is gated by SiLU(z) and weighed by `attn`, and their sum is projected.

    Args:
        dim: model width D.
        inner: inner width E.
        scans: the branches.
        state: states a channel, N.
        attn: makes a module (B, M, E) -> (B, M, E) for the inner width, which all branches share; None for none.
    """

    def __init__(self, dim: int, inner: int, scans: Sequence[Scan], state: int = 16, attn: Any = None) -> None:
        super().__init__()
        self.scans = tuple(scans)
        self.by_order: dict[str, list[Scan]] = {}
        for scan in scans:
            self.by_order.setdefault(scan.order, []).append(scan)
        self.inner, self.rank, self.state = inner, math.ceil(dim / 16), state
        self.fused = True  # see `set_fused`
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        for scan in scans:
            for part, own in zip(PARTS, own_parameters(inner, self.rank, state)):
                setattr(self, part + scan.suffix, own)
            setattr(self, scan.decay, nn.Parameter(self.in_proj.weight.new_empty(inner, state)))
        self.attn = None if attn is None else attn(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for scan in scans:
            own = self._branch(scan).scan_direction()
            init_scan(own.A_log_EN, own.D_E, own.dt_proj_ER, own.dt_bias_E)

    def forward(self, x_BMD: Tensor, orders: Orders) -> Tensor:
        """(B, M, D) -> (B, M, D), the tokens being those of a grid with these orders."""
        x_BME, z_BME = as_call(self.in_proj)(x_BMD).chunk(2, dim=-1)
        gate_BME, sums = F.silu(z_BME), []
        moved = in_orders(x_BME, orders, self.by_order)
        for name, scans in self.by_order.items():
            outs = [self._branch(scan).scanned(moved[name], self) for scan in scans]
            if self.attn is None:
                sums.append(put_back(_sum([y_BME / len(self.scans) for y_BME in outs]), orders[name]))
            else:
                sums.append(_sum([self.attn(put_back(y_BME, orders[name]) * gate_BME) for y_BME in outs]))
        sum_BME = _sum(sums)
        return as_call(self.out_proj)(sum_BME * gate_BME if self.attn is None else sum_BME)

    def _branch(self, scan: Scan) -> Branch:
        check_filter(f"conv1d{scan.suffix}", getattr(self, f"conv1d{scan.suffix}"))
        own = [getattr(self, part + scan.suffix) for part in PARTS]
        return Branch._make([*own, getattr(self, scan.decay), scan.reverse])


def _sum(tensors: list[Tensor]) -> Tensor:
    return reduce(torch.add, tensors)


class ChannelGate(nn.Module):
    """(B, M, E) -> (B, M, E): each channel by a factor between 0 and 1 that an MLP makes of the mean of all tokens
    (arXiv 2403.09338, section 3.2).

    Args:
        dim: channels E; the MLP's inner width is an eighth of it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps=1e-5)
        self.global_reduce = nn.Linear(dim, dim // 8)
        self.channel_select = nn.Linear(dim // 8, dim)

    def forward(self, x_BME: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, E), in x's dtype."""
        mean_B1E = self.norm(x_BME).mean(1, keepdim=True)
        factor_B1E = self.channel_select(F.gelu(self.global_reduce(mean_B1E))).sigmoid()
        return x_BME * factor_B1E.to(x_BME.dtype)
