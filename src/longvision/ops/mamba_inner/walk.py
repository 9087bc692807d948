"""One direction through the tokens, as its parameters."""

from typing import NamedTuple

from torch import Tensor


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
