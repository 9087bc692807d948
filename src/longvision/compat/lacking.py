"""The scan with B and C of every kind and the last state, made of calls of the op, which has neither yet."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longvision import ops
from longvision.ops.selective_scan.reference import biased

NO_STEP = -1e4  # softplus of it is 0


def selective_scan(
    x_BME: Tensor,
    delta_BME: Tensor,
    A_EN: Tensor,
    B: Tensor,
    C: Tensor,
    D_E: Tensor | None = None,
    z_BME: Tensor | None = None,
    delta_bias_E: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    *,
    return_last_state: bool = False,
) -> Any:
    """(B, M, E) -> (B, M, E), or that and the last state (B, E, N). B and C: (E, N), (B, M, N) or (B, M, G, N)."""
    options: dict[str, Any] = {"delta_bias_E": delta_bias_E, "delta_softplus": delta_softplus, "reverse": reverse}
    if B.ndim == C.ndim == 3 and not return_last_state:
        return ops.selective_scan(x_BME, delta_BME, A_EN, B, C, D_E, z_BME, **options)
    wide = x_BME.to(torch.promote_types(x_BME.dtype, torch.float32))
    y = _of_groups(wide, delta_BME, A_EN, B, C, options)
    y = y if D_E is None else y + D_E * wide
    y = y if z_BME is None else y * F.silu(z_BME.to(wide.dtype))
    y = y.to(x_BME.dtype)
    return (y, _last_state(wide, delta_BME, A_EN, B, options)) if return_last_state else y


def _of_groups(x_BME: Tensor, delta_BME: Tensor, A_EN: Tensor, B: Tensor, C: Tensor, options: dict[str, Any]) -> Tensor:
    """(B, M, E) -> (B, M, E), without D and z."""
    groups = max([each.shape[2] for each in (B, C) if each.ndim == 4], default=1)
    bias = options["delta_bias_E"]
    found = []
    for own in torch.arange(x_BME.shape[2]).chunk(groups):
        part = slice(int(own[0]), int(own[-1]) + 1)
        of_group = [_group(each, part, A_EN.shape[0]) for each in (B, C)]
        own_options = {**options, "delta_bias_E": None if bias is None else bias[part]}
        scan: Any = _by_states if 2 in (B.ndim, C.ndim) else ops.selective_scan
        found.append(scan(x_BME[..., part], delta_BME[..., part], A_EN[part], *of_group, **own_options))
    return torch.cat(found, -1)


def _group(B: Tensor, part: slice, channels: int) -> Tensor:
    if B.ndim == 2:
        return B[part]
    return B if B.ndim == 3 else B[:, :, part.start * B.shape[2] // channels]


def _by_states(x_BME: Tensor, delta_BME: Tensor, A_EN: Tensor, B: Tensor, C: Tensor, **options) -> Tensor:
    """A state at a time: what is constant in B and C is a factor of its output."""
    ones_BM1, total = x_BME.new_ones(*x_BME.shape[:2], 1), torch.zeros_like(x_BME)
    for n in range(A_EN.shape[1]):
        own_B, own_C = (ones_BM1 if each.ndim == 2 else each[..., n : n + 1] for each in (B, C))
        y = ops.selective_scan(x_BME, delta_BME, A_EN[:, n : n + 1], own_B, own_C, **options)
        for each in (B, C):
            y = y * each[:, n] if each.ndim == 2 else y
        total = total + y
    return total


def _last_state(x_BME: Tensor, delta_BME: Tensor, A_EN: Tensor, B: Tensor, options: dict[str, Any]) -> Tensor:
    """(B, E, N), read by tokens behind the last one that have no step, one a state."""
    batch = x_BME.shape[0]
    states, softplus = A_EN.shape[1], options["delta_softplus"]
    delta = biased(delta_BME, options["delta_bias_E"], torch.promote_types(delta_BME.dtype, torch.float32))
    x = F.pad(x_BME, (0, 0, 0, states))
    delta = F.pad(delta, (0, 0, 0, states), value=NO_STEP if softplus else 0.0)
    if B.ndim > 2:
        B = F.pad(B, (0, 0) * (B.ndim - 2) + (0, states))
    C_BMN = torch.cat([x.new_zeros(batch, x_BME.shape[1], states), torch.eye(states).expand(batch, -1, -1).to(x)], 1)
    y_BME = _of_groups(x, delta, A_EN, B, C_BMN, {**options, "delta_bias_E": None})
    return y_BME[:, -states:].mT
