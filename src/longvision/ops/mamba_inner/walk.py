"""One direction through the tokens, as its parameters."""

from collections.abc import Sequence
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


TENSORS = len(Walk._fields) - 1


def flat(walks: Sequence[Walk]) -> tuple[list[Tensor], list[bool]]:
    """The walks' tensors one after the other, and their directions, as an op's schema has them."""
    return [tensor for walk in walks for tensor in walk.tensors()], [walk.reverse for walk in walks]


def unflat(tensors: Sequence[Tensor], reverse: Sequence[bool]) -> list[Walk]:
    return [Walk._make([*tensors[i * TENSORS :][:TENSORS], way]) for i, way in enumerate(reverse)]


def check_walks(walks: Sequence[Walk], x_BMD: Tensor, in_proj_FD: Tensor | None, out_proj_DE: Tensor | None) -> None:
    """Raises ValueError for shapes that do not fit: kernels would read beyond a tensor's end."""
    if len(walks) not in (1, 2):
        raise ValueError(f"{len(walks)} walks: expected one direction or two")
    if x_BMD.ndim != 3 or x_BMD.shape[1] == 0:
        raise ValueError(f"x of shape {tuple(x_BMD.shape)}: expected (batch, tokens, channels), at least one token")
    channels = x_BMD.shape[-1]
    width, states = (channels if in_proj_FD is None else in_proj_FD.shape[0]) // 2, walks[0].A_log_EN.shape[-1]
    taps, rank = walks[0].filter_EK.shape[-1], walks[0].dt_proj_ER.shape[-1]
    shapes = {
        "filter_EK": (width, taps),
        "filter_bias_E": (width,),
        "x_proj_PE": (rank + 2 * states, width),
        "dt_proj_ER": (width, rank),
        "dt_bias_E": (width,),
        "A_log_EN": (width, states),
        "D_E": (width,),
    }
    for walk in walks:
        for (name, shape), tensor in zip(shapes.items(), walk.tensors()):
            if tensor is None or tuple(tensor.shape) != shape:
                came = "is None" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise ValueError(f"a walk's {name} {came}, expected a tensor of shape {shape}")
    if in_proj_FD is None and channels != 2 * width:
        raise ValueError(f"x of {channels} channels without in_proj: expected x and z of {width} each")
    if in_proj_FD is not None and tuple(in_proj_FD.shape) != (2 * width, channels):
        raise ValueError(f"in_proj has shape {tuple(in_proj_FD.shape)}, expected {(2 * width, channels)}")
    if out_proj_DE is not None and (out_proj_DE.ndim != 2 or out_proj_DE.shape[1] != width):
        raise ValueError(f"out_proj has shape {tuple(out_proj_DE.shape)}, expected (channels, {width})")
