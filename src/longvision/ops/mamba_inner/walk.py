"""One direction through the tokens, as its parameters."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from longvision.ops.checks import check_fits, check_tokens, columns


class Walk(NamedTuple):
    """R is the rank of the step's projection, K the filter's taps.

    `x_proj_PE` has P = R + 2 N rows, for the low-rank step, B and C; `A_log_EN` is log(-A).
    """

    filter_EK: Tensor
    filter_bias_E: Tensor
    x_proj_PE: Tensor
    dt_proj_ER: Tensor
    dt_bias_E: Tensor
    A_log_EN: Tensor
    D_E: Tensor
    reverse: bool

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self[:-1])


TENSORS = len(Walk._fields) - 1


class Inner(NamedTuple):
    """What the input meets: parameters and borders, as in `mamba_inner`."""

    walks: Sequence[Walk]
    in_proj_FD: Tensor | None
    out_proj_DE: Tensor | None
    cu_seqlens: Tensor | None

    def output_shape(self, x_BMD: Tensor) -> tuple[int, ...]:
        width = len(self.walks[0].D_E) if self.out_proj_DE is None else self.out_proj_DE.shape[0]
        return *x_BMD.shape[:2], width


def flat(walks: Sequence[Walk]) -> tuple[list[Tensor], list[bool]]:
    """The walks' tensors one after the other, and their directions, as an op's schema has them."""
    return [tensor for walk in walks for tensor in walk.tensors()], [walk.reverse for walk in walks]


def unflat(tensors: Sequence[Tensor], reverse: Sequence[bool]) -> list[Walk]:
    return [Walk._make([*tensors[i * TENSORS :][:TENSORS], way]) for i, way in enumerate(reverse)]


def check_walks(
    op: str, walks: Sequence[Walk], x_BMD: Tensor, in_proj_FD: Tensor | None, out_proj_DE: Tensor | None
) -> None:
    """Raises TypeError or ValueError for what is not a mixer's, or does not fit."""
    check_tokens(op, x_BMD)
    if len(walks) not in (1, 2):
        raise ValueError(f"{op} got {len(walks)} walks, expected one direction or two")
    channels, (first, *_) = x_BMD.shape[-1], walks
    matrices = {"filter_EK": first.filter_EK, "dt_proj_ER": first.dt_proj_ER, "A_log_EN": first.A_log_EN}
    taps, rank, states = (columns(op, f"a walk's {name}", matrix) for name, matrix in matrices.items())
    width = channels // 2 if in_proj_FD is None else len(first.filter_EK)
    if in_proj_FD is None and channels % 2:
        raise ValueError(f"{op} got x of {channels} channels without in_proj, expected x and z of the same number each")
    shapes = (width, taps), (width,), (rank + 2 * states, width), (width, rank), (width,), (width, states), (width,)
    if in_proj_FD is not None:
        check_fits(op, "in_proj", in_proj_FD, (2 * width, channels), x_BMD)
    for walk in walks:
        for name, tensor, shape in zip(Walk._fields, walk.tensors(), shapes):
            check_fits(op, f"a walk's {name}", tensor, shape, x_BMD)
    if out_proj_DE is not None:
        columns(op, "out_proj", out_proj_DE)
        check_fits(op, "out_proj", out_proj_DE, (len(out_proj_DE), width), x_BMD)
