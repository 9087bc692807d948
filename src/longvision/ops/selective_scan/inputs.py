"""What every backend of the scan reads."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

PER_TOKEN = ("x_BME", "delta_BME", "B_BMN", "C_BMN", "z_BME")  # B and C only where they are not constant
TENSORS = 9  # that have gradients: the first ones


class ScanInputs(NamedTuple):
    """Shapes and meaning as in `selective_scan`; `grid` is None too where a scan by columns is one by rows."""

    x_BME: Tensor
    delta_BME: Tensor
    A_EN: Tensor
    B_BMN: Tensor  # or (B, M, G, N) with G > 1, or (E, N)
    C_BMN: Tensor  # the same
    D_E: Tensor | None
    z_BME: Tensor | None
    delta_bias_E: Tensor | None
    initial_state_BEN: Tensor | None
    cu_seqlens: Tensor | None
    delta_softplus: bool
    reverse: bool
    grid: tuple[int, int] | None

    def of_tokens(self) -> dict[str, Tensor]:
        """Those that have a row for each token, by name."""
        named = {name: getattr(self, name) for name in PER_TOKEN}
        return {name: t for name, t in named.items() if t is not None and t.ndim > 2}

    def with_tokens(self, function: Callable[[Tensor], Tensor]) -> "ScanInputs":
        """`function` of each that has a row for each token."""
        changed: dict[str, Any] = {name: function(t) for name, t in self.of_tokens().items()}
        return self._replace(**changed)

    def rows(self, rows: slice) -> "ScanInputs":
        """These rows of the batch."""
        initial_BEN = self.initial_state_BEN
        return self.with_tokens(lambda t: t[rows])._replace(
            initial_state_BEN=None if initial_BEN is None else initial_BEN[rows]
        )

    # Groups of channels with B and C of their own: each is a scan by itself.

    @property
    def groups(self) -> int:
        """So many, that neither B nor C changes inside one."""
        return math.lcm(*(t.shape[2] for t in (self.B_BMN, self.C_BMN) if t.ndim == 4))

    def by_group(self) -> Iterator[tuple[slice, "ScanInputs"]]:
        """(channels, their scan) of each group, without copies."""
        groups, width = self.groups, self.x_BME.shape[2]
        if groups == 1:
            yield slice(None), self
            return
        for i in range(groups):
            own = slice(i * width // groups, (i + 1) * width // groups)
            z, D, bias, initial = self.z_BME, self.D_E, self.delta_bias_E, self.initial_state_BEN
            yield (
                own,
                self._replace(
                    x_BME=self.x_BME[..., own],
                    delta_BME=self.delta_BME[..., own],
                    A_EN=self.A_EN[own],
                    B_BMN=_one_group(self.B_BMN, i, groups, own),
                    C_BMN=_one_group(self.C_BMN, i, groups, own),
                    D_E=None if D is None else D[own],
                    z_BME=None if z is None else z[..., own],
                    delta_bias_E=None if bias is None else bias[own],
                    initial_state_BEN=None if initial is None else initial[:, own],
                ),
            )


def _one_group(B: Tensor, i: int, groups: int, channels: slice) -> Tensor:
    """(B, M, N) of B or C: what the i-th of so many groups has of it; or (E, N)."""
    if B.ndim == 4:
        return B[:, :, i * B.shape[2] // groups]
    return B[channels] if B.ndim == 2 else B


def gradient_of_groups(grad_GBMN: Tensor, B: Tensor) -> Tensor:
    """The gradient of B or C from those of each group; groups that share one are summed."""
    if B.ndim == 3:
        return grad_GBMN[0] if len(grad_GBMN) == 1 else grad_GBMN.sum(0)
    own = B.shape[2]
    return grad_GBMN.unflatten(0, (own, -1)).sum(1).permute(1, 2, 0, 3)


# The tokens as pixels of a grid


def by_columns(tensor: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, M, ...) -> (B, M, ...): from row by row to column by column."""
    return tensor.unflatten(1, tuple(grid)).transpose(1, 2).flatten(1, 2)


def by_rows(tensor: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same, back."""
    rows, columns = grid
    return by_columns(tensor, (columns, rows))


def check_grid(op: str, grid: tuple[int, int], tokens: int) -> None:
    """Raises ValueError unless it has as many pixels as there are tokens."""
    rows, columns = grid
    if rows < 1 or columns < 1 or rows * columns != tokens:
        raise ValueError(
            f"{op} got grid {(rows, columns)} and {tokens} tokens: expected (rows, columns) with a token for each pixel"
        )
