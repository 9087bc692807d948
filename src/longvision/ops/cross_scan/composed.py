"""The cross scan as four calls of the kernels for one direction, whose outputs are summed in float32."""

from typing import Any

import torch
from torch import Tensor

from longvision.ops.cross_scan.inputs import CrossInputs
from longvision.ops.cross_scan.reference import DIRECTIONS


class Composed:
    """Of a backend of the selective scan, a backend of the cross scan. Columns are walked in place if that does it."""

    def __init__(self, scan: Any) -> None:
        self.scan = scan

    def forward(self, inputs: CrossInputs, states: Tensor | None) -> Tensor:
        """-> y (B, M, E); writes the states of each direction, unless that is None."""
        sum_BME = None
        for k, direction in enumerate(_widened(inputs).directions()):
            y_BME = self.scan.forward(direction, None if states is None else states[k], None)
            sum_BME = y_BME if sum_BME is None else sum_BME.add_(y_BME)
        assert sum_BME is not None
        return sum_BME.to(inputs.x_BME.dtype)

    def backward(self, grad_BME: Tensor, states: Tensor, inputs: CrossInputs) -> tuple[Tensor | None, ...]:
        """-> gradients of the tensors of `CrossInputs`."""
        inputs = _widened(inputs)
        found = [
            self.scan.backward(grad_BME.to(inputs.x_BME.dtype), None, of_direction, direction)[:8]
            for of_direction, direction in zip(states, inputs.directions())
        ]
        dx, ddelta, dA, dB, dC, dD, _, dbias = zip(*found)
        dx_BME = dx[0]
        for other in dx[1:]:
            dx_BME = dx_BME.add_(other)
        per_token = (torch.stack(parts, dim=2) for parts in (ddelta, dB, dC))
        ddelta_BMKE, dB_BMKN, dC_BMKN = per_token
        dD_KE, dbias_KE = (
            None if given is None else torch.stack(parts)
            for given, parts in ((inputs.D_KE, dD), (inputs.delta_bias_KE, dbias))
        )
        return dx_BME, ddelta_BMKE, torch.stack(dA), dB_BMKN, dC_BMKN, dD_KE, dbias_KE

    def states_shape(self, inputs: CrossInputs) -> tuple[int, ...]:
        """(K, ...)."""
        return DIRECTIONS, *self.scan.states_shape(next(inputs.directions()))


def _widened(inputs: CrossInputs) -> CrossInputs:
    """With x in float32 or better, as outputs and gradients of directions then are: their sums are rounded once."""
    dtype = torch.promote_types(inputs.x_BME.dtype, torch.float32)
    return inputs._replace(x_BME=inputs.x_BME.to(dtype))
