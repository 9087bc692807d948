"""VMamba's cross scan from four scans of the paper's equations: the specification for kernels. Slow."""

from collections.abc import Callable

from torch import Tensor

from longvision.ops import common
from longvision.ops.selective_scan.inputs import by_columns, by_rows
from longvision.ops.selective_scan.reference import selective_scan_reference

DIRECTIONS = 4


def cross_scan_reference(
    x_BME: Tensor,
    delta_BMKE: Tensor,
    A_KEN: Tensor,
    B_BMKN: Tensor,
    C_BMKN: Tensor,
    D_KE: Tensor | None,
    delta_bias_KE: Tensor | None,
    grid: tuple[int, int],
    delta_softplus: bool = True,
    scan: Callable[..., Tensor] = selective_scan_reference,
) -> Tensor:
    """(B, M, E) -> (B, M, E). Section 4.3 of arXiv 2401.10166; arguments as in `cross_scan`.

    `scan` is called on tokens that lie in the order of a direction.
    """

    def along(k: int) -> Tensor:
        per_token = [common.widened(x_BME), *(t[:, :, k] for t in (delta_BMKE, B_BMKN, C_BMKN))]
        x, delta, B, C = (by_columns(t, grid) for t in per_token) if k % 2 else per_token
        D_E, bias_E = (None if t is None else t[k] for t in (D_KE, delta_bias_KE))
        y_BME = scan(x, delta, A_KEN[k], B, C, D_E, None, bias_E, delta_softplus, k >= 2)
        return by_rows(y_BME, grid) if k % 2 else y_BME

    one, *others = (along(k) for k in range(DIRECTIONS))
    return sum(others, start=one).to(x_BME.dtype)
