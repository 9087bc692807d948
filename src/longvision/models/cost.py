"""What a model costs: parameters, and multiply-adds of one image, the scan's among them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from longvision.models.backbone import create_sized


@dataclass(frozen=True)
class Cost:
    """Of one image: multiply-adds in all, and those of the scans alone."""

    parameters: int
    macs: int
    scan_macs: int


def measure_cost(name: str, height: int, width: int, **arguments: Any) -> Cost:
    """Count on the meta device: nothing is computed, any size is instant. Raises ValueError for a size it refuses.

    Matrix products and convolutions count as torch's FlopCounterMode does. The scan counts 4 N + 2 multiply-adds a
    token and channel: step times A, the state's decay and its input, and its output, for each of N states; step
    times x, and D times x. Exponentials and other elementwise work are not counted, here and in other models.
    """
    with torch.device("meta"):
        model = create_sized(name, (height, width), **arguments)
    return cost_of(model, height, width)


def cost_of(model: nn.Module, height: int, width: int) -> Cost:
    """The same of a model on the meta device."""
    # torch's counter fails at a parameter that goes into a layer, as an attention pooling's query, if it is trained
    model.eval().requires_grad_(False)
    image = torch.empty(1, getattr(model, "in_chans", 3), height, width, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter, torch.inference_mode(False), torch.no_grad():
        model(image)
    by_op = counter.get_flop_counts()["Global"]
    flops = {str(op): count for op, count in by_op.items()}
    scan = sum(count for op, count in flops.items() if "selective_scan" in op or "cross_scan" in op)
    return Cost(sum(p.numel() for p in model.parameters()), sum(flops.values()) // 2, scan // 2)


def _scan_flops(x_shape: Any, delta_shape: Any, A_shape: Any, *_: Any, **__: Any) -> int:
    batch, tokens, channels = x_shape
    return 2 * batch * tokens * channels * (4 * A_shape[1] + 2)


def _cross_flops(x_shape: Any, delta_shape: Any, A_shape: Any, *_: Any, **__: Any) -> int:
    directions, channels, states = A_shape
    return directions * _scan_flops(x_shape, delta_shape, (channels, states))


def _conv_flops(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    batch, tokens, channels = x_shape
    return 2 * batch * tokens * channels * weight_shape[1]


FORMULAS = {
    torch.ops.longvision.selective_scan: _scan_flops,
    torch.ops.longvision.cross_scan: _cross_flops,
    torch.ops.longvision.causal_conv1d: _conv_flops,
}
