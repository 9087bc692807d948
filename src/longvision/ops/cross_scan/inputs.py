"""What every backend of the cross scan reads."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from longvision.ops.cross_scan.reference import DIRECTIONS
from longvision.ops.selective_scan.inputs import ScanInputs

TENSORS = 7  # that have gradients: the first ones


class CrossInputs(NamedTuple):
    """Shapes and meaning as in `cross_scan`."""

    x_BME: Tensor
    delta_BMKE: Tensor
    A_KEN: Tensor
    B_BMKN: Tensor
    C_BMKN: Tensor
    D_KE: Tensor | None
    delta_bias_KE: Tensor | None
    grid: tuple[int, int]
    delta_softplus: bool

    def directions(self) -> Iterator[ScanInputs]:
        """Each as a scan, without copies: by rows, by columns, and both from the end."""
        D_KE, bias_KE, (rows, columns) = self.D_KE, self.delta_bias_KE, self.grid
        for k in range(DIRECTIONS):
            yield ScanInputs(
                self.x_BME,
                self.delta_BMKE[:, :, k],
                self.A_KEN[k],
                self.B_BMKN[:, :, k],
                self.C_BMKN[:, :, k],
                None if D_KE is None else D_KE[k],
                None,
                None if bias_KE is None else bias_KE[k],
                initial_state_BEN=None,
                cu_seqlens=None,
                delta_softplus=self.delta_softplus,
                reverse=k >= 2,
                grid=(rows, columns) if k % 2 and 1 not in self.grid else None,
            )
