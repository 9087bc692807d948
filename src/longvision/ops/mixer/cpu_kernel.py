"""How the mixer's kernel in C++ is called (ops/kernels/cpp/mixer.h), and what stands around it."""

from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.kernels.cpp.allocator import cached_empty
from longvision.ops.kernels.cpp.library import Library
from longvision.ops.kernels.cpp.matmul import matmul
from longvision.ops.kernels.cpp.record import address, contiguous, double, pack, rows
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection
from longvision.ops.rms_norm import cpu as norm


class Part(NamedTuple):
    """A direction in `run`: `Direction` of mixer.h, where each field is explained."""

    direction: ScanDirection
    u_BME: Tensor
    projection_BMP: Tensor
    partial_BME: Tensor | None
    states_BKNE: Tensor | None = None
    carry_BNE: Tensor | None = None

    def record(self, parameters: list[Tensor]) -> tuple[int, ...]:
        return (
            *(t.data_ptr() for t in parameters),
            *(self.direction.reverse, self.u_BME.data_ptr(), self.projection_BMP.data_ptr()),
            *rows(self.partial_BME),
            *(address(self.states_BKNE), address(self.carry_BNE)),
        )


NO_PART = (0,) * 15  # in place of a second direction


def run(
    library: Library,
    x_BME: Tensor,
    z_BME: Tensor | None,
    parts: list[Part],
    other_BME: Tensor | None,
    scale: float,
    boundaries: Tensor,
    visible: Tensor,
    slots: int = 0,
) -> None:
    """Convolution, SiLU, projections and scan of one direction or two: `Mixer` of mixer.h."""
    first = parts[0].direction
    alive = [[contiguous(t, library.real) for t in part.direction[:-1]] for part in parts]
    records = [part.record(parameters) for part, parameters in zip(parts, alive)]
    library.mixer_forward(
        pack(
            *(*x_BME.shape, first.A_log_EN.shape[1], first.dt_proj_ER.shape[1], first.filter_EK.shape[1]),
            *(torch.get_num_threads(), boundaries.data_ptr(), visible.data_ptr(), len(boundaries) - 1, slots),
            len(parts),
            *rows(x_BME),
            *rows(z_BME),
            *rows(other_BME),
            double(scale),
            *records[0],
            *(records[1] if len(parts) > 1 else NO_PART),
        )
    )


def normed(x_BMD: Tensor, inputs: MixerInputs) -> tuple[Tensor, Tensor | None]:
    """-> what the input projection takes of x, or of some tokens, (B, M, D), and 1 / rms (B, M) if there is a norm."""
    if inputs.norm_weight_D is None:
        return x_BMD.to(inputs.dtype), None
    return norm.forward(x_BMD, inputs.norm_weight_D, inputs.eps, inputs.dtype)


def tokens_times(left_BMK: Tensor, right_KN: Tensor, add_BMN: Tensor | None = None) -> Tensor:
    """(B, M, K) times (K, N), plus (B, M, N)."""
    add_TN = None if add_BMN is None else add_BMN.flatten(0, 1)
    out_BMN = cached_empty(*left_BMK.shape[:2], right_KN.shape[1], dtype=left_BMK.dtype)
    matmul(left_BMK.flatten(0, 1), right_KN, add_TN, out=out_BMN.flatten(0, 1))
    return out_BMN
