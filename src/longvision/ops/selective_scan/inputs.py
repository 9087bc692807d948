"""What every backend of the scan reads."""

from typing import NamedTuple

from torch import Tensor


class ScanInputs(NamedTuple):
    """Shapes and meaning as in `selective_scan`."""

    x_BME: Tensor
    delta_BME: Tensor
    A_EN: Tensor
    B_BMN: Tensor
    C_BMN: Tensor
    D_E: Tensor | None
    z_BME: Tensor | None
    delta_bias_E: Tensor | None
    cu_seqlens: Tensor | None
    delta_softplus: bool
    reverse: bool

    def of_tokens(self) -> list[Tensor]:
        """Those that have a row for each token."""
        return [t for t in (self.x_BME, self.delta_BME, self.B_BMN, self.C_BMN, self.z_BME) if t is not None]

    def rows(self, rows: slice) -> "ScanInputs":
        """These rows of the batch."""
        return self._replace(
            x_BME=self.x_BME[rows],
            delta_BME=self.delta_BME[rows],
            B_BMN=self.B_BMN[rows],
            C_BMN=self.C_BMN[rows],
            z_BME=None if self.z_BME is None else self.z_BME[rows],
        )
