"""The cross scan that models call: checks, and four selective scans."""

from torch import Tensor

from longvision.ops.common import check_fits, check_tokens
from longvision.ops.cross_scan.reference import DIRECTIONS, cross_scan_reference
from longvision.ops.selective_scan.op import selective_scan


def cross_scan(
    x_BME: Tensor,
    delta_BMKE: Tensor,
    A_KEN: Tensor,
    B_BMKN: Tensor,
    C_BMKN: Tensor,
    D_KE: Tensor | None,
    delta_bias_KE: Tensor | None,
    grid: tuple[int, int],
    delta_softplus: bool = True,
) -> Tensor:
    """(B, M, E) -> (B, M, E). The tokens of an image scanned in four directions, whose outputs are summed.

    Section 4.3 of arXiv 2401.10166 (VMamba): direction 0 goes row by row, 1 column by column, 2 is 0 from the end and 3
    is 1 from the end. Each is a `selective_scan` with parameters of its own; everything stays in the order of the rows,
    computed in float32, or in float64 where x is; the output has x's dtype.

    Args:
        x_BME: input, batch x pixels x channels, row by row.
        delta_BMKE: step size of each of K = 4 directions; any of its dimensions may come first in memory but the last.
        A_KEN: decay rates, N states a channel.
        B_BMKN: how the input enters the state.
        C_BMKN: how the output reads the state.
        D_KE: skip connection; None for none.
        delta_bias_KE: added to delta, in float32; None for none.
        grid: rows and columns of the image, M pixels in all.
        delta_softplus: take softplus of delta (after the bias).

    Raises:
        TypeError, ValueError: an argument is not a tensor, or its shape, dtype or device does not match.
    """
    _check(x_BME, delta_BMKE, A_KEN, B_BMKN, C_BMKN, D_KE, delta_bias_KE)
    rows, columns = grid
    if rows < 1 or columns < 1 or rows * columns != x_BME.shape[1]:
        raise ValueError(
            f"cross_scan got grid {(rows, columns)} and {x_BME.shape[1]} tokens: expected (rows, columns) with a token "
            "for each pixel"
        )
    tensors = x_BME, delta_BMKE, A_KEN, B_BMKN, C_BMKN, D_KE, delta_bias_KE
    return cross_scan_reference(*tensors, (rows, columns), delta_softplus, scan=selective_scan)


def _check(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None) -> None:
    check_tokens("cross_scan", x)
    batch, tokens, width = x.shape
    if not isinstance(A, Tensor):
        raise TypeError(f"cross_scan got A of type {type(A).__name__}, expected a torch.Tensor of three dimensions")
    if A.ndim != 3 or A.shape[2] == 0:
        raise ValueError(f"cross_scan got A of shape {tuple(A.shape)}, expected (4, {width}, states)")
    states = A.shape[2]
    shapes = {
        "delta": (delta, (batch, tokens, DIRECTIONS, width)),
        "A": (A, (DIRECTIONS, width, states)),
        "B": (B, (batch, tokens, DIRECTIONS, states)),
        "C": (C, (batch, tokens, DIRECTIONS, states)),
        "D": (D, (DIRECTIONS, width)),
        "delta_bias": (bias, (DIRECTIONS, width)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None or name not in ("D", "delta_bias"):
            check_fits("cross_scan", name, tensor, shape, x)
