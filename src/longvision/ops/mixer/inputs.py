"""What every backend of the mixer reads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longvision.ops.common import check_fits, check_tokens, columns


class ScanDirection(NamedTuple):
    """One direction of the scan, as its parameters. R is the rank of the step's projection, K the filter's taps.

    The filter may be the weight of a depthwise convolution as it is, (E, 1, K).

    `x_proj_PE` has P = R + 2 N rows, for the low-rank step, B and C; `A_log_EN` is log(-A). With `reverse` the scan
    goes from the last token to the first.
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
        return self[:-1]

    def with_filter_EK(self) -> "ScanDirection":
        of_convolution = getattr(self.filter_EK, "ndim", 0) == 3
        return self._replace(filter_EK=self.filter_EK.squeeze(1)) if of_convolution else self


TENSORS = len(ScanDirection._fields) - 1


class MixerInputs(NamedTuple):
    """Shapes and meaning as in `mixer`; what is between norm and output is stored in `dtype`."""

    x_BMD: Tensor
    directions: Sequence[ScanDirection]
    in_proj_FD: Tensor
    out_proj_DE: Tensor
    norm_weight_D: Tensor | None
    cu_seqlens: Tensor | None
    residual: bool
    eps: float
    dtype: torch.dtype

    @classmethod
    def of_the_op(cls, x: Tensor, parameters: Sequence[Tensor], reverse: Sequence[bool], *rest: Any) -> "MixerInputs":
        """From an op's arguments, whose schema has no tuples of tensors."""
        directions = [ScanDirection._make([*parameters[i * TENSORS :][:TENSORS], way]) for i, way in enumerate(reverse)]
        return cls(x, directions, *rest)

    def for_the_op(self) -> tuple[Any, ...]:
        """`of_the_op` undone."""
        x, directions, *rest = self
        parameters = [tensor for direction in directions for tensor in direction[:-1]]
        return x, parameters, [direction.reverse for direction in directions], *rest

    def tensors(self) -> list[Tensor]:
        """Those that may have a gradient, in the order in which backward functions return them."""
        parameters = [tensor for direction in self.directions for tensor in direction[:-1]]
        norm = [] if self.norm_weight_D is None else [self.norm_weight_D]
        return [self.x_BMD, *parameters, self.in_proj_FD, self.out_proj_DE, *norm]

    def with_tensors(self, tensors: Sequence[Any]) -> "MixerInputs":
        """With others in the place of `tensors()`."""
        x, *rest = tensors
        own = [rest[i * TENSORS :][:TENSORS] for i in range(len(self.directions))]
        directions = [ScanDirection._make([*t, d.reverse]) for t, d in zip(own, self.directions)]
        in_proj, out_proj, *norm = rest[TENSORS * len(own) :]
        return self._replace(
            x_BMD=x, directions=directions, in_proj_FD=in_proj, out_proj_DE=out_proj, norm_weight_D=(*norm, None)[0]
        )

    def without_tensors(self) -> "MixerInputs":
        """What a backward keeps beside the tensors that autograd saves for it."""
        return self.with_tensors([None] * len(self.tensors()))

    def output_dtype(self) -> torch.dtype:
        return self.x_BMD.dtype if self.residual else self.dtype

    def output_shape(self) -> tuple[int, ...]:
        return *self.x_BMD.shape[:2], self.out_proj_DE.shape[0]


def check_mixer(
    x: Tensor,
    directions: Sequence[ScanDirection],
    in_proj: Tensor,
    out_proj: Tensor,
    norm_weight: Tensor | None,
    residual: bool,
) -> None:
    """Raises TypeError or ValueError for what is not a mixer's, or does not fit."""
    check_tokens("mixer", x)
    if len(directions) not in (1, 2):
        raise ValueError(f"mixer got {len(directions)} directions, expected one or two")
    first = directions[0]
    matrices = {"filter_EK": first.filter_EK, "dt_proj_ER": first.dt_proj_ER, "A_log_EN": first.A_log_EN}
    taps, rank, states = (columns("mixer", f"a direction's {name}", matrix) for name, matrix in matrices.items())
    channels, width = x.shape[-1], len(first.filter_EK)
    check_fits("mixer", "in_proj", in_proj, (2 * width, channels), x)
    shapes = (width, taps), (width,), (rank + 2 * states, width), (width, rank), (width,), (width, states), (width,)
    for direction in directions:
        for name, tensor, shape in zip(ScanDirection._fields, direction[:-1], shapes):
            check_fits("mixer", f"a direction's {name}", tensor, shape, x)
    columns("mixer", "out_proj", out_proj)
    check_fits("mixer", "out_proj", out_proj, (channels if residual else len(out_proj), width), x)
    if norm_weight is not None:
        check_fits("mixer", "norm_weight", norm_weight, (channels,), x)
