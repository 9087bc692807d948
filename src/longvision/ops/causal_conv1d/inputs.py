"""What every backend of the convolution reads."""

from typing import NamedTuple

from torch import Tensor


class ConvInputs(NamedTuple):
    """Shapes and meaning as in `causal_conv1d`."""

    x_BME: Tensor
    weight_EK: Tensor
    bias_E: Tensor | None
    cu_seqlens: Tensor | None
    silu: bool
    reverse: bool
