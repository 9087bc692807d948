"""How kernels are launched: tiles, warps, when to split a sequence. Data, by kernel, states and size."""

from typing import NamedTuple

from torch import Tensor


class Configuration(NamedTuple):
    channels: int
    warps: int = 1
    programs: int = 1
    piece: int = 4


def configuration(kernel: str, x_BME: Tensor, states: int) -> Configuration:
    return Configuration(channels=32, programs=1056)
