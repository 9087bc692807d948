"""What the Triton kernels are compiled for, to be counted: blocks of Vim, and each op called by itself."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from longvision.ops.causal_conv1d import cuda as convolution
from longvision.ops.causal_conv1d.inputs import ConvInputs
from longvision.ops.mixer import cuda as mixer
from longvision.ops.mixer.inputs import MixerInputs, ScanDirection
from longvision.ops.rms_norm import cuda as norm
from longvision.ops.selective_scan import cuda as scan
from longvision.ops.selective_scan.inputs import ScanInputs

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EPS = 1e-5


class Case(NamedTuple):
    """`call` hands tensors without memory to wrappers of kernels."""

    name: str
    call: Callable[[], None]


def empty(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def cu_seqlens() -> Tensor:
    """Boundaries of eight packed sequences."""
    return empty(9, dtype=torch.int64)


def vim_block(
    width: int,
    tokens: int,
    batch: int,
    dtype: torch.dtype = BF16,
    train: bool = True,
    packed: bool = False,
    states: int = 16,
) -> None:
    """Forward, and with `train` backward."""
    inner_width, rank = 2 * width, -(-width // 16)

    def direction(reverse: bool) -> ScanDirection:
        taps, rates = empty(inner_width, 4), empty(inner_width, states)
        x_proj, dt_proj = empty(rank + 2 * states, inner_width), empty(inner_width, rank)
        bias, dt_bias, skip = empty(inner_width), empty(inner_width), empty(inner_width)
        return ScanDirection(taps, bias, x_proj, dt_proj, dt_bias, rates, skip, reverse)

    inputs = MixerInputs(
        empty(batch, tokens, width),
        [direction(False), direction(True)],
        *(empty(2 * inner_width, width), empty(width, inner_width), empty(width)),
        cu_seqlens() if packed else None,
        residual=True,
        eps=EPS,
        dtype=dtype,
    )
    y_BMD, saved = mixer.forward(inputs, train)
    if train:
        mixer.backward(y_BMD, saved, inputs)


def selective_scan(dtype: torch.dtype, softplus: bool = True, packed: bool = False) -> None:
    """Forward and backward at the inner width of Vim-Ti, with D, z and a bias."""
    batch, tokens = (1, 6085) if packed else (128, 197)
    x_BME, delta_BME, z_BME = (empty(batch, tokens, 384, dtype=dtype) for _ in range(3))
    B_BMN, C_BMN = (empty(batch, tokens, 16, dtype=dtype) for _ in range(2))
    inputs = ScanInputs(
        *(x_BME, delta_BME, empty(384, 16), B_BMN, C_BMN, empty(384), z_BME, empty(384)),
        initial_state_BEN=None,
        cu_seqlens=cu_seqlens() if packed else None,
        delta_softplus=softplus,
        reverse=False,
        grid=None,
    )
    states_BKEN = empty(*scan.states_shape(inputs))
    scan.backward(scan.forward(inputs, states_BKEN, None), None, states_BKEN, inputs)


def causal_conv1d(dtype: torch.dtype, packed: bool = False) -> None:
    """Forward and backward at the inner width of Vim-Ti, with a bias and SiLU."""
    batch, tokens = (1, 6085) if packed else (128, 197)
    x_BME = empty(batch, tokens, 384, dtype=dtype)
    inputs = ConvInputs(x_BME, empty(384, 4), empty(384), cu_seqlens() if packed else None, silu=True, reverse=False)
    convolution.backward(convolution.forward(inputs), inputs)


def rms_norm(width: int, dtype: torch.dtype) -> None:
    """Forward and backward, from a float32 residual."""
    x_BMD, weight_D = empty(128, 197, width), empty(width, dtype=dtype)
    y_BMD, inverse_BM = norm.forward(x_BMD, weight_D, EPS, dtype)
    norm.backward(y_BMD, inverse_BM, x_BMD, weight_D, EPS, dtype)


CASES = (
    Case("Vim-Ti, 224 px, batch 128, training", partial(vim_block, 192, 197, 128)),
    Case("Vim-Ti, 224 px, batch 128, inference", partial(vim_block, 192, 197, 128, train=False)),
    Case("Vim-S, 224 px, batch 128, training", partial(vim_block, 384, 197, 128)),
    Case("Vim-Ti, 1248 px, batch 1, inference", partial(vim_block, 192, 6085, 1, train=False)),
    Case("Vim-Ti, 1248 px, batch 1, training", partial(vim_block, 192, 6085, 1)),
    Case("Vim-Ti, packed, 6085 tokens, training", partial(vim_block, 192, 6085, 1, packed=True)),
    Case("Vim-Ti, 224 px, batch 128, training, float32", partial(vim_block, 192, 197, 128, FP32)),
    Case("Vim-Ti, 224 px, batch 128, training, float16", partial(vim_block, 192, 197, 128, FP16)),
    Case("Vim-Ti with 64 states, 224 px, batch 128, training", partial(vim_block, 192, 197, 128, states=64)),
    Case("selective_scan, bfloat16", partial(selective_scan, BF16)),
    Case("selective_scan, float16", partial(selective_scan, FP16)),
    Case("selective_scan without softplus, bfloat16", partial(selective_scan, BF16, softplus=False)),
    Case("selective_scan, packed, bfloat16", partial(selective_scan, BF16, packed=True)),
    Case("causal_conv1d, bfloat16", partial(causal_conv1d, BF16)),
    Case("causal_conv1d, float16", partial(causal_conv1d, FP16)),
    Case("causal_conv1d, packed, bfloat16", partial(causal_conv1d, BF16, packed=True)),
    *(Case(f"rms_norm, {width} channels, bfloat16", partial(rms_norm, width, BF16)) for width in (192, 768, 16384)),
)
